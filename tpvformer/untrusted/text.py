"""Parse untrusted JSON and YAML: a value of bounded depth and size, or one error."""

from __future__ import annotations

import json
from typing import Any, Union

LARGEST_YAML = 2**18  # characters, read in 3 s whatever they say; a configuration has 3000


class TextError(ValueError):
    """A text that cannot be used; the message is the reason, on one line."""


def parse_json(text: Union[str, bytes]) -> Any:
    """Parse the value of a JSON text. Raises TextError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise TextError("it is nested too deeply") from None
    except ValueError as err:  # a number of too many digits and bytes that are no UTF-8 as well
        raise TextError(_line(err)) from None


def parse_yaml(text: str) -> Any:
    """Parse the value of a YAML text without references (``*name``), of which a few lines can stand for everything.

    Raises TextError.
    """
    import yaml  # here, because a machine that only measures may lack it

    if len(text) > LARGEST_YAML:
        raise TextError(f"it has {len(text)} characters, more than {LARGEST_YAML}")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise TextError(f"it refers to its own part {event.anchor[:40]!r}")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > 32:
                    raise TextError("it is nested too deeply")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
        return yaml.safe_load(text)
    except yaml.YAMLError as err:
        raise TextError(_line(err)) from None
    except (ValueError, RecursionError) as err:  # impossible dates and numbers
        raise TextError(_line(err)) from None


def _line(err: BaseException) -> str:
    return " ".join(str(err).split())[:200] or type(err).__name__
