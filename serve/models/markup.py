"""Takes Markdown and HTML out of what a reader of documents writes, so that its words can be laid beside others'."""

import html
import re

_ATTRIBUTES = r"(?:\s+[\w-]+\s*=[^<>]*|\s*/?)>"
_BREAK = re.compile(rf"</?(?:table|thead|tbody|tr|caption|p|div|ul|ol|li|h[1-6]|center|pre|br){_ATTRIBUTES}", re.I)
_CELL = re.compile(rf"</?(?:td|th){_ATTRIBUTES}", re.I)
_INLINE = re.compile(rf"</?(?:b|i|u|s|em|strong|span|sup|sub|code|a|img|html|body|header|footer){_ATTRIBUTES}", re.I)
_CONTROL = re.compile(r"<\|[^|<>\n]{1,40}\|>")
_LINK = re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\s]{0,300}\)")
_RULE = re.compile(r"```\w*|[-*_=]{3,}|\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?)?")
_LINE_START = re.compile(r"(?:#{1,6}|>|[-*+])\s+")
_STRONG = re.compile(r"(\*\*|__|~~|`)(?=[^\s*_`])([^*_`\n]{1,300}?)(?<=\S)\1")
_EMPHASIS = re.compile(r"(?<![\w*\\])\*(?=[^\s*])([^*\n]{1,300})(?<=[^\s\\])\*(?![\w*])")
_ESCAPED = re.compile(r"\\([\\`*_{}\[\]()#+\-.!|>~$])")


def plain_text(text: str) -> str:
    """Return the text alone, line by line: a table's cells with a space between them, a picture's description.

    What only looks like markup stays: `2 * 3`, `a < b`, `snake_case`. Formulas stay as they are.
    """
    text = _BREAK.sub("\n", _CONTROL.sub("", text))
    text = html.unescape(_INLINE.sub("", _CELL.sub(" ", text)))
    lines = (_plain_line(line) for line in map(str.strip, text.splitlines()) if not _RULE.fullmatch(line))
    return "\n".join(line for line in lines if line)


def _plain_line(line: str) -> str:
    mark = _LINE_START.match(line)
    line = line[mark.end() :] if mark is not None else line
    if len(line) > 1 and line.startswith("|") and line.endswith("|"):
        line = line.strip("|").replace("|", " ")
    line = _EMPHASIS.sub(r"\1", _STRONG.sub(r"\2", _LINK.sub(r"\1", line)))
    return " ".join(_ESCAPED.sub(r"\1", line).split())
