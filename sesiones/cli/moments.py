"""How far a moment in epoch seconds is from now, for people."""

import time


def distance(moment: int) -> str:
    """``3 min ago``, ``in 2 h``: how far the moment is from now, by the clock of this machine."""
    seconds = round(moment - time.time())
    amount, unit = abs(seconds), "s"
    for size, larger in (60, "min"), (60, "h"), (24, "days"):
        if amount < 2 * size:
            break
        amount, unit = amount // size, larger
    return f"in {amount} {unit}" if seconds > 0 else f"{amount} {unit} ago"
