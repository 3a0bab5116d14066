"""Hold one document against the model: every mistake of shape in our words, and a table of what is good.

pydantic gives no table while there is a mistake, and then no other check could run. So what is wrong is taken out of
the data, and the rest is validated again. Says nothing about what keys mean together.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from sockguard.config.document import Document, Faults
from sockguard.config.locate import Path
from sockguard.config.model import FileTable, keys_of
from sockguard.words import did_you_mean, kind

_ROUNDS: Final = 8  # one finds everything, the next has nothing left; more is a fault of this module
_TYPES: Final = {
    "string_type": "a string",
    "int_type": "an integer",
    "bool_type": "true or false",
    "list_type": "an array",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


def shape(document: Document, faults: Faults) -> FileTable:
    """Validate ``document.data``, which is changed: what was wrong is gone. Its mistakes are added to ``faults``."""
    for _ in range(_ROUNDS):
        try:
            return FileTable.model_validate(document.data)
        except ValidationError as error:
            wrong: dict[Path, str] = {}
            for detail in error.errors(include_url=False):
                wrong.setdefault(detail["loc"], _plain(detail))
            for path, text in wrong.items():
                faults.add(document, path, text)
                _take_out(document.data, path)
    raise AssertionError("taking a mistake out of the data made another")


def _plain(detail: ErrorDetails) -> str:
    path, code = detail["loc"], detail["type"]
    context: dict[str, Any] = detail.get("ctx", {})
    if code == "extra_forbidden":
        return f"unknown key{did_you_mean(str(path[-1]), keys_of(path[:-1]))}"
    if code in _TYPES:
        hint = f"; write [[{'.'.join(map(str, path))}]]" if path[-1] in ("allow", "deny", "expect") else ""
        return f"must be {_TYPES[code]}, not {kind(detail['input'])}{hint}"
    if code == "greater_than_equal":
        return f"must be at least {context['ge']}"
    if code == "less_than_equal":
        return f"must be at most {context['le']}"
    if code == "value_error":
        return str(context["error"])
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _take_out(data: Any, path: Path) -> None:
    """Remove a key; in a list put a hole instead, so that the elements after it keep their numbers."""
    *way, last = path
    for part in way:
        data = data[part]
    if isinstance(last, int):
        data[last] = {} if path[-2] in ("allow", "deny", "expect") else None
    else:
        del data[last]
