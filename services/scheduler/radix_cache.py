"""The radix KV index: which token prefixes have their keys and values in which pages.

A tree whose edges carry token ids in whole pages. Requests that share a prefix share its pages. Nodes that a
running request stands on are locked up to the root; unlocked leaves are evicted least recently used first.
Source: RadixAttention, Zheng et al. 2024 (SGLang).

Pages in the tree belong to the tree: `insert` takes ownership of those that are new to it, `evict` returns them.
Tokens of different cache salts live under different roots and never meet.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
Key = int | bytes
NO_PAGES = np.empty(0, np.int32)


class RadixNode:
    """One edge and its end. `tokens` has `page_size` tokens for each of `pages`. Owned by the cache.

    Outside it serves as a bookmark: while `parent` is set, the path from the root holds `end` tokens that never
    become others, only fewer.
    """

    __slots__ = ("children", "end", "in_heap", "last_access", "lock_ref", "pages", "parent", "salt", "tokens")

    def __init__(self, parent: RadixNode | None, salt: str, tokens: I32, pages: I32, last_access: int) -> None:
        self.parent = parent
        self.end: int = len(tokens) + (parent.end if parent is not None else 0)
        self.salt = salt
        self.tokens = tokens
        self.pages = pages
        self.children: dict[Key, RadixNode] = {}
        self.lock_ref = 0
        self.last_access = last_access
        self.in_heap = False


class CacheObserver(Protocol):
    """Told of every change of the tree's content; see kv_events.py."""

    def stored(self, before: I32, tokens: I32, salt: str) -> None:
        """`tokens` were added behind the path `before`."""

    def removed(self, path: I32, count: int, salt: str) -> None:
        """The last `count` tokens of `path` were dropped."""

    def cleared(self) -> None:
        """Everything was dropped."""


@dataclass(frozen=True, slots=True)
class Match:
    """Longest cached prefix: its pages in order, and the node where it ends."""

    node: RadixNode
    pages: I32


class RadixCache:
    """Lives as long as an engine's session; the engine alone mutates it."""

    def __init__(self, page_size: int, observer: CacheObserver | None = None) -> None:
        self.page_size = page_size
        self.evictable_pages = 0
        self.protected_pages = 0
        self.version = 0
        """Grows with every change of what is stored; a match stays true while it stays the same."""
        self._roots: dict[str, RadixNode] = {}
        self._clock = itertools.count(1)
        self._heap: list[tuple[int, int, RadixNode]] = []  # (last access, tie-break, unlocked leaf)
        self._ties = itertools.count()
        self._observer = observer

    def find(self, tokens: I32, salt: str = "", bookmark: RadixNode | None = None) -> tuple[RadixNode | None, int]:
        """Longest cached prefix of `tokens`, in whole pages. Changes nothing.

        Args:
            bookmark: the node found earlier for the same tokens; the search goes on from there.

        Returns:
            The last node that lies on the prefix as a whole, and the prefix's length in tokens.
        """
        node = bookmark if bookmark is not None and bookmark.parent is not None else self._roots.get(salt)
        if node is None:
            return None, 0
        at = node.end
        while at + self.page_size <= len(tokens):
            child = node.children.get(self._key(tokens, at))
            if child is None:
                break
            same = self._common(child.tokens, tokens[at:])
            at += same
            if same < len(child.tokens):
                break
            node = child
        return node, at

    def match_prefix(self, tokens: I32, salt: str = "") -> Match:
        """Longest cached prefix of `tokens`, in whole pages; a node is split where the match ends inside it."""
        return self._descend(self._root(salt), tokens)

    def _descend(self, node: RadixNode, tokens: I32) -> Match:
        """`match_prefix` from `node`, on whose path `tokens` lie, with the pages after it only."""
        now, at, pages = next(self._clock), node.end, []
        while at + self.page_size <= len(tokens):
            child = node.children.get(self._key(tokens, at))
            if child is None:
                break
            same = self._common(child.tokens, tokens[at:])
            if same < len(child.tokens):
                child = self._split(child, same)
            child.last_access = now
            pages.append(child.pages)
            node, at = child, at + same
        return Match(node, np.concatenate(pages) if pages else NO_PAGES)

    def insert(self, tokens: I32, pages: I32, salt: str = "", behind: RadixNode | None = None) -> tuple[RadixNode, int]:
        """Store the pages of `tokens`; len(tokens) = len(pages) * page_size.

        Args:
            behind: a locked node on whose path `tokens` are known to lie: the walk there is saved.

        Returns:
            The node where `tokens` ends, and how many leading pages the tree already had: those of the caller's
            pages stay the caller's, the rest belongs to the tree from now on.
        """
        assert len(tokens) == len(pages) * self.page_size
        start = self._root(salt) if behind is None else behind
        match = self._descend(start, tokens)
        had = start.end // self.page_size + len(match.pages)
        if had == len(pages):
            return match.node, had
        at = had * self.page_size
        leaf = RadixNode(match.node, salt, tokens[at:].copy(), pages[had:].copy(), next(self._clock))
        match.node.children[self._key(tokens, at)] = leaf
        self.version += 1
        self.evictable_pages += len(leaf.pages)
        self._offer(leaf)
        if self._observer is not None:
            self._observer.stored(tokens[:at], leaf.tokens, salt)
        return leaf, had

    def lock(self, node: RadixNode) -> None:
        """Protect the path from the root to `node` from eviction; it is used now."""
        now = next(self._clock)
        at: RadixNode | None = node
        while at is not None:
            at.last_access = now
            if at.lock_ref == 0:
                self.evictable_pages -= len(at.pages)
                self.protected_pages += len(at.pages)
            at.lock_ref += 1
            at = at.parent

    def unlock(self, node: RadixNode) -> None:
        """Undo one `lock`."""
        at: RadixNode | None = node
        while at is not None:
            assert at.lock_ref > 0, "unlock without lock"
            at.lock_ref -= 1
            if at.lock_ref == 0:
                self.evictable_pages += len(at.pages)
                self.protected_pages -= len(at.pages)
                self._offer(at)
                self._forget_if_empty(at)
            at = at.parent

    def evict(self, count: int) -> I32:
        """Drop at least `count` pages if so many are evictable, least recently used leaves first, tails first."""
        freed: list[I32] = []
        missing = count
        while missing > 0 and self._heap:
            access, _, node = heapq.heappop(self._heap)
            node.in_heap = False
            if node.children or node.lock_ref or node.parent is None:
                continue
            if access != node.last_access:
                self._offer(node)
                continue
            freed.append(self._drop_tail(node, missing))
            missing -= len(freed[-1])
        return np.concatenate(freed) if freed else NO_PAGES

    def clear_unlocked(self) -> I32:
        """Drop everything that no running request holds; returns its pages."""
        pages = self.evict(self.evictable_pages)
        if self._observer is not None and self.protected_pages == 0:
            self._observer.cleared()
        return pages

    def _drop_tail(self, node: RadixNode, most: int) -> I32:
        """Cut up to `most` pages from the end of an unlocked leaf; a leaf without pages leaves the tree."""
        count = min(most, len(node.pages))
        if self._observer is not None:
            self._observer.removed(*self._path(node, count * self.page_size))
        dropped = node.pages[len(node.pages) - count :]
        self.version += 1
        self.evictable_pages -= count
        parent = node.parent
        assert parent is not None
        if count < len(node.pages):
            node.pages = node.pages[:-count].copy()
            node.tokens = node.tokens[: -count * self.page_size].copy()
            node.end -= count * self.page_size
            self._offer(node)
        else:
            del parent.children[self._key(node.tokens, 0)]
            node.parent = None
            self._offer(parent)
            self._forget_if_empty(parent)
        return dropped

    def _offer(self, node: RadixNode) -> None:
        """Put an unlocked leaf among the candidates for eviction."""
        if node.parent is not None and not node.children and not node.lock_ref and not node.in_heap:
            node.in_heap = True
            heapq.heappush(self._heap, (node.last_access, next(self._ties), node))

    def _split(self, node: RadixNode, at: int) -> RadixNode:
        """Cut `node` after `at` tokens; returns the upper half, which keeps locks and place."""
        cut = at // self.page_size
        parent = node.parent
        assert parent is not None
        assert 0 < at < len(node.tokens)
        upper = RadixNode(parent, node.salt, node.tokens[:at], node.pages[:cut], node.last_access)
        upper.lock_ref = node.lock_ref
        parent.children[self._key(node.tokens, 0)] = upper
        node.tokens, node.pages, node.parent = node.tokens[at:], node.pages[cut:], upper
        upper.children[self._key(node.tokens, 0)] = node
        return upper

    def _root(self, salt: str) -> RadixNode:
        root = self._roots.get(salt)
        if root is None:
            root = self._roots[salt] = RadixNode(None, salt, NO_PAGES, NO_PAGES, 0)
        return root

    def _forget_if_empty(self, node: RadixNode) -> None:
        """Salts come from clients: the root of one whose last page is gone does not stay."""
        if node.parent is None and not node.children and not node.lock_ref:
            self._roots.pop(node.salt, None)

    def _key(self, tokens: I32, at: int) -> Key:
        if self.page_size == 1:
            return int(tokens[at])
        return tokens[at : at + self.page_size].tobytes()

    def _common(self, a: I32, b: I32) -> int:
        """Length of the common prefix, rounded down to whole pages."""
        n = min(len(a), len(b))
        same = n if a[:n].tobytes() == b[:n].tobytes() else int((a[:n] != b[:n]).argmax())
        return same - same % self.page_size

    def _path(self, node: RadixNode, count: int) -> tuple[I32, int, str]:
        """(all tokens down to `node`, count, salt): what an observer is told of a removal."""
        parts, at = [], node
        while at.parent is not None:
            parts.append(at.tokens)
            at = at.parent
        return np.concatenate(parts[::-1]), count, node.salt
