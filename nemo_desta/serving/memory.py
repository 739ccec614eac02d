"""Returns freed memory to the system.

glibc keeps freed memory: each freed buffer of up to 32 MB raises the size above which it returns memory at once, and
gaps between live blocks are never returned by itself.
"""

import asyncio
import ctypes

#: Interval.
TRIM_SECS = 5.0


async def keep_trimmed() -> None:
    """Returns free memory every `TRIM_SECS` until cancelled; does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(TRIM_SECS)
        await asyncio.to_thread(trim, 0)
