"""Chat templates: little programs in a model's files, run where they can reach nothing but the messages, and not for long."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.core.errors import UsageError

RENDERING = Path(__file__).with_name("rendering.py")
LONGEST_WAIT = 4.0  # seconds, where the system does not end it earlier


def render(template: str | Mapping[str, str], messages: Sequence[Mapping[str, str]], names: Mapping[str, Any]) -> str:
    """The conversation as text, with the beginning of an answer. names: of special tokens, "bos_token" and so on.

    template: of several, by name, it is the one called "default".

    Raises `UsageError` where the template refuses the messages, is no template, or takes seconds or a gigabyte.
    """
    chosen = template if isinstance(template, str) else template.get("default", "")
    task = json.dumps({"template": chosen, "messages": [dict(message) for message in messages], "names": dict(names)})
    try:
        # -P: the modules beside the file are not for it.
        done = subprocess.run(
            [sys.executable, "-P", str(RENDERING)], input=task, capture_output=True, text=True, timeout=LONGEST_WAIT, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _refused("it does not come to an end") from error
    if done.returncode:
        raise _refused("it takes too much time or memory")
    answer = json.loads(done.stdout)
    if "text" not in answer:
        raise _refused(answer["refused"])
    text: str = answer["text"]
    return text


def _refused(why: str) -> UsageError:
    return UsageError(f"the model's chat template does not take this conversation: {why}")
