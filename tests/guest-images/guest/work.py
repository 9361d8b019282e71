"""Exercises the interpreter; prints the same everywhere."""
import hashlib
import json
import math
import random
import re
import zlib

sieve = bytearray([1]) * 300000
for i in range(2, 548):
    if sieve[i]:
        sieve[i * i :: i] = bytes(len(range(i * i, len(sieve), i)))
print("primes", sum(sieve) - 2)

random.seed(1234)
words = ["".join(random.choice("abcdefgh") for _ in range(5)) for _ in range(20000)]
counts = {}
for word in words:
    counts[word[:2]] = counts.get(word[:2], 0) + 1
print("counts", sorted(counts.items())[:8], len(set(words)))

print("bigint", hashlib.sha256(hex(pow(3, 20000)).encode()).hexdigest())
print("pow", pow(0x1234567890ABCDEF, 0xFEDCBA, 2**127 - 1))

total = 0.0
for i in range(1, 100000):
    total += math.sqrt(i) / (i + 0.5) - (i % 7) * 1e-3
print("floats", repr(total), f"{math.fsum(math.sin(i) for i in range(5000)):.9f}")

text = json.dumps({"list": list(range(2000)), "map": {w: i for i, w in enumerate(words[:2000])}})
assert json.loads(text)["list"][-1] == 1999
print("json", hashlib.md5(text.encode()).hexdigest())

text = re.sub(r"([a-d]+)(\d*)", lambda m: m.group(1).upper(), " ".join(words))
print("regex", len(re.findall(r"[A-D]{3,}", text)), zlib.crc32(text.encode()))

packed = zlib.compress(text.encode(), 6)
assert zlib.decompress(packed).decode() == text
print("zlib", len(packed))


class Node:
    """A node of an unbalanced search tree."""

    __slots__ = ("key", "left", "right")

    def __init__(self, key):
        self.key, self.left, self.right = key, None, None

    def insert(self, key):
        """Adds `key` unless it is there."""
        node = self
        while node.key != key:
            side = "left" if key < node.key else "right"
            child = getattr(node, side)
            if child is None:
                setattr(node, side, Node(key))
                return
            node = child


root = Node("m")
for word in words[:8000]:
    root.insert(word)


def walk(node):
    """Keys in order."""
    if node:
        yield from walk(node.left)
        yield node.key
        yield from walk(node.right)


print("tree", hashlib.sha1(" ".join(walk(root)).encode()).hexdigest())
try:
    [][1]
except IndexError as error:
    print("exception", error)
