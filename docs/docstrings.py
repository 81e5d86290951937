"""What MkDocs shows of a docstring, where Markdown would take it otherwise.

Examples are code: ``>>>`` would be a quotation. What a function returns is text: whatever stands
before a colon in it would be a type.
"""

import re
import textwrap

import griffe

EXAMPLE = re.compile(r"^>>> .*\n?(?:.+\n?)*", re.MULTILINE)
RETURNS = re.compile(r"^Returns:\n((?:(?: .*)?\n)*(?: .*)?)", re.MULTILINE)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring and not obj.is_alias:
            text = RETURNS.sub(_text, obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(_fenced, text)


def _text(returns):
    return f"**Returns:**\n\n{textwrap.dedent(returns[1]).strip()}\n\n"


def _fenced(example):
    return f"```pycon\n{example[0].rstrip()}\n```\n"
