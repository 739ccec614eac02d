"""Memory that was freed goes back to the system.

glibc keeps what was freed for later: each freed buffer of up to 32 MB raises the size from which it would return
memory at once, and gaps between live blocks stay in any case.
"""

import asyncio
import ctypes

#: Free memory is returned so often.
TRIM_SECS = 5.0


async def keep_trimmed() -> None:
    """Return free memory now and then, until cancelled. Without glibc there is nothing to do."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(TRIM_SECS)
        await asyncio.to_thread(trim, 0)
