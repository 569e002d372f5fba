"""Generated parts of a document, between markers that a reader does not see."""

from collections.abc import Mapping

from isomorph.errors import UserError


def renew(text: str, blocks: Mapping[str, str]) -> str:
    """Return `text` with the content of each named block replaced.

    A block stands between `<!-- NAME:begin -->` and `<!-- NAME:end -->`, on lines of their own.

    Raises:
        UserError: a marker is missing, or stands more than once.
    """
    for name, content in blocks.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->\n"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UserError(f"the document needs {begin.strip()} and {end.strip()} once, in order")
        head, rest = text.split(begin)
        text = head + begin + content + end + rest.split(end)[1]
    return text
