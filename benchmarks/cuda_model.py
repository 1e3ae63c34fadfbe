"""What the kernels are predicted to take on an H200 (132 multiprocessors, 1.98 GHz), before any of it ran on a card.

Clocks are estimates from the code and from what is published of the architecture; kernels/README.md has the sums. The
studies in kernels/ print these numbers beside what they measure: where the two differ, the model is to be corrected.
"""

from __future__ import annotations

MHZ, MULTIPROCESSORS = 1980, 132
FAST_BYTES = 227 * 1024  # shared memory of a block

# A pick of the usual kind (w >= 0, argmax, nobody drops out): csrc/cuda/gram_pursuit.hpp.
BARRIERS, CLUSTER_BARRIERS = 17, 1
BARRIER_CLOCKS, CLUSTER_BARRIER_CLOCKS = 30, 950  # the latter with the memory fence and the lost first-level cache
FIXED_CLOCKS, FIXED_CLOCKS_OF_SEVERAL = 5000, 7700  # what does not grow with the members: one block, and more
DOTS, DOT_CLOCKS, SLOW_DOT_CLOCKS = 3, 10, 36  # products with the factor; of a member, in shared and in global memory
MEMBER_CLOCKS = 30  # of a member in g = c - K w, for each row that a thread has


def blocks_of(n, problems=1, multiprocessors=MULTIPROCESSORS, k=0):
    """Blocks of a problem, as GramBatch::choose_grid has it."""
    room, wanted, blocks = multiprocessors // problems, 1 if k > 1024 else n // 256, 1
    while 2 * blocks <= min(room, wanted, 8):
        blocks *= 2
    return blocks


def factor_is_fast(k, n_groups=8):  # beside the task itself, about 400 bytes
    members = 8 * (17 * k + 4 * k + 64) + 4 * (9 * k + 2 * n_groups + 1024)
    return members + 8 * k * (k | 1) <= FAST_BYTES


def gram_us(n, k, problems=1):
    """Microseconds of one launch: the pursuits alone, without uploads and the check of K."""
    blocks = blocks_of(n, problems, k=k)
    waves = -(-problems * blocks // MULTIPROCESSORS)  # 226 registers a thread: one block a multiprocessor
    fixed = FIXED_CLOCKS if blocks == 1 else FIXED_CLOCKS_OF_SEVERAL
    dot = DOTS * (DOT_CLOCKS if factor_is_fast(k) else SLOW_DOT_CLOCKS)
    rows = max(1, n / (256 * blocks))
    return waves * (k * fixed + k * k / 2 * (dot + rows * MEMBER_CLOCKS)) / MHZ


# K = G G' by our own kernel: tiles of 32 x 32 entries, a block of two warps each, 32 columns at a time.
TILE_CLOCKS = 2150  # of 32 columns: 1,280 of arithmetic, the rest waits for the next ones


def built_in_product_us(n, d):
    tiles = -(-n // 32) * (-(-n // 32) + 1) // 2
    together = max(1.0, tiles / (MULTIPROCESSORS * 2.0))  # two blocks hide each other's waits
    return together * -(-d // 32) * TILE_CLOCKS / MHZ


def cublas_product_us(n, d, flop_per_s=650e12):
    """Rows in half precision: all of the square, sums of 4,096 columns, and their addition in float64."""
    sums = -(-d // 4096) * 4 * n * n
    return 20 + 1e6 * (2 * n * n * d / flop_per_s + 1.5 * sums / 4e12)


def linear_us(n, d, item=2, bytes_per_s=3.6e12):
    """c = G t: one reading."""
    return 1e6 * n * d * item / bytes_per_s


def pass_us(n, d, vectors, bytes_per_s=3.9e12, fma_per_s=20e12):
    """A pass of the dense route over rows in bfloat16.

    Up to eight vectors our own kernel: reading, or float32 arithmetic at 60 % of its peak. More go to cuBLAS in two
    parts each: reading at four fifths of the rate, and the products written, read and joined.
    """
    if vectors > 8:
        return 1e6 * (2 * n * d / (0.8 * bytes_per_s) + 20 * n * vectors / bytes_per_s)
    return 1e6 * max(2 * n * d / bytes_per_s, n * d * (-(-vectors // 4) * 4) / fma_per_s)
