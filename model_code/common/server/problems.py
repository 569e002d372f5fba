"""What went wrong, as a status and the body of an error in OpenAI's shape."""

import logging

from model_code.common.chat import ChatError
from model_code.common.engine import PromptTooLongError, UnavailableError
from model_code.common.server import answers
from model_code.common.server.admission import Admission, DrainingError, QueueFullError
from model_code.common.server.requests import InvalidRequestError

_LOG = logging.getLogger(__name__)


class LoadingError(Exception):
    """The weights are not loaded yet."""


def problem_of(
    problem: Exception, *, admission: Admission, deadline_s: float, tokens: int
) -> tuple[int, bytes]:
    """Return the status and the body that tell a client what went wrong."""
    say = str(problem)
    match problem:
        case InvalidRequestError():
            kind, param = "invalid_request_error", problem.param
            code = "model_not_found" if problem.status == 404 else None
            return problem.status, answers.error(say, kind=kind, param=param, code=code)
        case ChatError():
            return 400, answers.error(say, kind="invalid_request_error", param="messages")
        case PromptTooLongError():
            kind, code = "invalid_request_error", "context_length_exceeded"
            return 400, answers.error(say, kind=kind, code=code)
        case QueueFullError():
            say = f"{admission.slots} requests run and {admission.queue} wait; try again later"
            return 429, answers.error(say, kind="rate_limit_error", code="queue_full")
        case LoadingError():
            return 503, answers.error("the model is still loading", kind="server_error")
        case UnavailableError():
            _LOG.warning("unavailable: %s", problem.__cause__ or problem)
            return 503, answers.error(say, kind="server_error", code="weights_unavailable")
        case DrainingError():
            return 503, answers.error("this server is shutting down", kind="server_error")
        case TimeoutError():
            say = (
                f"the deadline of {deadline_s:g} s passed after "
                f"{tokens} tokens; ask for fewer with max_tokens"
            )
            return 504, answers.error(say, kind="timeout_error", code="deadline_exceeded")
    _LOG.error("a request failed", exc_info=problem)
    return 500, answers.error("internal error; the server's log has it", kind="server_error")
