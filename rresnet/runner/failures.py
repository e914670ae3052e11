"""How a trial process ends early: what the trial process and the driver both need to know of it, without torch."""

import re

from rresnet.tables.measurement import Measurement

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # Ray's colour codes
_RAISED = re.compile(r"[\w.]*(Error|Exception|Exit|Interrupt)(:|$)")  # how a traceback's last line begins


class TrialProcessSpentError(RuntimeError):
    """Ends a trial process whose state a failed trial may have harmed; the next trial gets a new one.

    The driver unpickles it: if it were defined in `rresnet.runner.trial`, that would import torch.
    """


def death(text: str, elapsed_seconds: float, timeout_seconds: float) -> Measurement:
    """The measurement of a trial whose process ended without a report; `text` is Ray's account of it."""
    if "OutOfMemoryError" in text or "low on memory" in text:
        return Measurement(status="out_of_memory", error_type="OutOfMemoryError", error_message=text[:2000])
    if elapsed_seconds >= timeout_seconds:
        message = f"still running after {timeout_seconds:g} s (--timeout-seconds)"
        return Measurement(status="timeout", error_type="TimeoutError", error_message=message)
    signs = ("has died", "died unexpectedly", "is unavailable")  # the last: its machine no longer answers
    if any(sign in text for sign in signs):
        detail = text[text.index("The actor is dead") :] if "The actor is dead" in text else text
        return Measurement(status="killed", error_type="ActorDiedError", error_message=detail[:2000])
    return Measurement(status="error", error_type="RayTaskError", error_message=_telling_first(text))


def _telling_first(text: str) -> str:
    """The line of a traceback that says what was raised, then the end of the traceback."""
    text = _COLOUR.sub("", text).strip()
    lines = text.splitlines()
    raised = next((line for line in reversed(lines) if _RAISED.match(line)), lines[-1] if lines else "")
    return text if raised == text else f"{raised[:500]}\n{text[-1500:]}"
