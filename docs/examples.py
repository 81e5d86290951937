"""Shows a docstring's examples as code: to Markdown, ``>>>`` would be a quotation."""

import re

import griffe

EXAMPLE = re.compile(r"^>>> .*\n(?:.+\n?)*", re.MULTILINE)


class Examples(griffe.Extension):
    def on_object(self, *, obj, **_):
        if obj.docstring and not obj.is_alias:
            obj.docstring.value = EXAMPLE.sub(_fenced, obj.docstring.value)


def _fenced(example):
    return f"```pycon\n{example[0].rstrip()}\n```\n"
