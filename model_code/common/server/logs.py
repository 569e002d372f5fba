"""Where log lines go: always to standard error, and to CloudWatch if a log group is set."""

import logging
import os
import sys
import warnings

from model_code.common.aws import client

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SEND_INTERVAL_S = 5


def set_up_logs(log_group: str) -> None:
    """Send log lines on their way. CloudWatch being out of reach never breaks serving."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    plain = logging.StreamHandler(sys.stderr)
    plain.setFormatter(logging.Formatter(_FORMAT))
    root.addHandler(plain)
    for noisy in ("botocore", "boto3", "urllib3", "uvicorn"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if log_group:
        try:
            root.addHandler(_cloudwatch(log_group))
        except Exception as error:
            logging.getLogger(__name__).warning("no logs go to %s: %s", log_group, error)


def _cloudwatch(log_group: str) -> logging.Handler:
    import watchtower

    # watchtower warns once per place in its code; without this filter, for each batch again.
    warnings.filterwarnings("once", category=watchtower.WatchtowerWarning)
    handler = watchtower.CloudWatchLogHandler(
        log_group_name=log_group,
        log_stream_name=f"{os.uname().nodename}/{os.getpid()}",
        boto3_client=client("logs", attempts=2),
        create_log_group=False,  # the stack makes it, with its retention and its key
        send_interval=_SEND_INTERVAL_S,
    )
    handler.FLUSH_TIMEOUT = 3  # it waits for this at exit: do not hold up a shutdown
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    return handler
