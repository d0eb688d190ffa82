"""One denoising step over the rows that can be revealed.

Logits arrive in vocabulary tiles, so that no [rows, vocabulary] array exists: the sampler keeps, for each row, the best token so
far and a running maximum and sum of exponentials. Everything is float64. The rule is the reference sampler's (ML-GSAI/LLaDA,
generate.py):

    N = L - T ln(-ln u)           Gumbel noise in the log domain; N = L at temperature 0
    token = argmax N              the lowest index on ties
    confidence = softmax(L)[token]

L are the logits after guidance; suppressed tokens are -inf in L before N is made, discounted ones only before the softmax.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer
from libc.math cimport INFINITY, exp, log
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from numpy.random cimport bitgen_t

import numpy as np


cdef class RowSampler:
    """Running statistics of up to `capacity` rows.

    Parameters
    ----------
    capacity : int
        Most rows of a step.
    temperature : float
        0 takes the most likely token.
    cfg_scale : float
        Above 0, tiles hold the conditional rows and then the unconditional ones.
    suppressed : sequence of int
        Tokens that are never drawn.
    discounted : sequence of int
        Tokens that may be drawn, with confidence 0; the confidence of the others does not count their mass.
    streams : sequence of numpy.random.BitGenerator
        One for each request. Draws of a request are taken tile by tile, row by row, token by token.
    """
    cdef readonly int capacity
    cdef readonly double temperature
    cdef readonly double cfg_scale
    cdef int rows
    cdef int[::1] suppressed, discounted
    cdef int[::1] token          # [capacity] best so far, -1 for none
    cdef double[::1] score       # [capacity] its N
    cdef double[::1] logit       # [capacity] its L
    cdef double[::1] maximum     # [capacity] of L without discounted tokens
    cdef double[::1] total       # [capacity] sum of exp(L - maximum)
    cdef bitgen_t** generators
    cdef object streams          # keeps the generators alive

    def __cinit__(self, int capacity, double temperature, double cfg_scale, suppressed, discounted, streams):
        self.capacity, self.temperature, self.cfg_scale = capacity, temperature, cfg_scale
        self.suppressed = np.asarray(suppressed, np.intc)
        self.discounted = np.asarray(discounted, np.intc)
        self.token = np.empty(capacity, np.intc)
        self.score, self.logit, self.maximum, self.total = (np.empty(capacity) for _ in range(4))
        self.streams = list(streams)
        self.generators = <bitgen_t**> malloc(max(1, len(self.streams)) * sizeof(bitgen_t*))
        if self.generators == NULL:
            raise MemoryError
        for i, stream in enumerate(self.streams):
            self.generators[i] = <bitgen_t*> PyCapsule_GetPointer(stream.capsule, "BitGenerator")

    def __dealloc__(self):
        free(self.generators)

    def begin(self, int rows):
        """Forget the last step; `rows` rows follow."""
        if rows > self.capacity:
            raise ValueError(f"rows: expected at most {self.capacity}, found {rows}")
        self.rows = rows
        self.token[:rows] = -1
        self.score[:rows] = -INFINITY
        self.maximum[:rows] = -INFINITY
        self.total[:rows] = 0

    def consume(self, float[:, ::1] tile, int first, const int32_t[::1] requests):
        """Take in the logits of tokens first, first + 1, ...; the tile is overwritten.

        Parameters
        ----------
        tile : float32 [rows, tokens], or [2 * rows, tokens] with guidance
        first : int
        requests : int32 [rows]
            The stream that each row draws from.
        """
        cdef int r, n = tile.shape[1]
        cdef const float* unconditional
        if tile.shape[0] != self.rows * (2 if self.cfg_scale > 0 else 1) or requests.shape[0] != self.rows:
            raise ValueError(f"tile: expected the logits of {self.rows} rows, found {tile.shape[0]}")
        with nogil:
            for r in range(self.rows):
                unconditional = &tile[self.rows + r, 0] if self.cfg_scale > 0 else NULL
                self.row(r, &tile[r, 0], unconditional, first, n, self.generators[requests[r]] if self.temperature > 0 else NULL)

    cdef void row(self, int r, float* logits, const float* unconditional, int first, int n, bitgen_t* generator) noexcept nogil:
        cdef int i
        cdef double best = self.score[r], noisy, most = -INFINITY, total = 0
        cdef float scale = <float> (self.cfg_scale + 1)
        if unconditional != NULL:
            for i in range(n):
                logits[i] = unconditional[i] + scale * (logits[i] - unconditional[i])
        for i in range(self.suppressed.shape[0]):
            if first <= self.suppressed[i] < first + n:
                logits[self.suppressed[i] - first] = -INFINITY
        for i in range(n):
            noisy = logits[i]
            if generator != NULL:
                noisy -= self.temperature * log(-log(generator.next_double(generator.state)))
            if noisy > best:
                best = noisy
                self.token[r] = first + i
                self.logit[r] = logits[i]
        self.score[r] = best
        for i in range(self.discounted.shape[0]):
            if first <= self.discounted[i] < first + n:
                logits[self.discounted[i] - first] = -INFINITY
        for i in range(n):
            if logits[i] != logits[i]:
                total = logits[i]  # NaN, for `finish` to find
            most = max(most, <double> logits[i])
        if most > self.maximum[r]:
            self.total[r] *= exp(self.maximum[r] - most)
            self.maximum[r] = most
        if self.maximum[r] > -INFINITY:
            for i in range(n):
                total += exp(logits[i] - self.maximum[r])
        self.total[r] += total

    def finish(self, int[::1] tokens, double[::1] confidence):
        """Write the token and confidence of every row. Returns the first row without a finite answer, or -1."""
        cdef int r, i
        for r in range(self.rows):
            if self.token[r] < 0 or self.total[r] != self.total[r]:
                return r
            tokens[r] = self.token[r]
            confidence[r] = exp(self.logit[r] - self.maximum[r]) / self.total[r]
            for i in range(self.discounted.shape[0]):
                if self.token[r] == self.discounted[i]:
                    confidence[r] = 0
        return -1

    def draw_confidence(self, const int32_t[::1] requests, double[::1] confidence):
        """Uniform confidences, for remasking="random"."""
        cdef int r
        cdef bitgen_t* generator
        for r in range(self.rows):
            generator = self.generators[requests[r]]
            confidence[r] = generator.next_double(generator.state)


def most_confident(const double[::1] confidence, int quota, int[::1] chosen):
    """Indices of the `quota` largest confidences, the lowest index first on ties. Returns how many there are."""
    cdef int n = confidence.shape[0], k = min(quota, n), i, j, best
    cdef bint taken
    with nogil:
        for j in range(k):
            best = -1
            for i in range(n):
                if best >= 0 and confidence[i] <= confidence[best]:
                    continue
                # Already chosen ones are exactly those that rank before every later choice.
                if j > 0 and (confidence[i] > confidence[chosen[j - 1]]
                              or (confidence[i] == confidence[chosen[j - 1]] and i <= chosen[j - 1])):
                    continue
                best = i
            chosen[j] = best
    return k
