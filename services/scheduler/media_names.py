"""Token ids that stand for images and videos in the radix cache.

Every token of an image has the image's own id, which no other image and no word has: two requests share an image's
keys and values exactly when it is the same image. Ids are negative, so that nothing takes them for words. They are
given out anew when a name is forgotten; what is cached under the old one is then found by nobody and evicted in time.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shared.messages import MediaSpan

I32 = npt.NDArray[np.int32]
MAX_NAMES = 65_536
LAST_ID = -(1 << 31)


class MediaNames:
    """Lives as long as the scheduler; names are the same for all its engines."""

    def __init__(self, max_names: int = MAX_NAMES) -> None:
        self._ids: OrderedDict[str, int] = OrderedDict()
        self._max_names = max_names
        self._last = -1  # which in plans means "none"

    def key_ids(self, input_ids: I32, media: Sequence[MediaSpan]) -> I32:
        """Prompt ids with the placeholders of media replaced by the media's ids."""
        if not media:
            return input_ids
        ids = input_ids.copy()
        for span in media:
            ids[span.start : span.start + span.tokens] = self._id_of(span.ref.key)
        return ids

    def _id_of(self, key: str) -> int:
        found = self._ids.get(key)
        if found is None:
            assert self._last > LAST_ID, "two billion images later"
            self._last -= 1
            found = self._ids[key] = self._last
            if len(self._ids) > self._max_names:
                self._ids.popitem(last=False)
        self._ids.move_to_end(key)
        return found
