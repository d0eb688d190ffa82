"""The door to the C++ library: owns every C++ pointer, checks arguments, releases the GIL, makes one call."""
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t, uintptr_t
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

from llada_native cimport _cpp as cpp

import atexit
import os
import time

import numpy as np

from llada_native.backend import IntegerRows, require_cache_dtype

cdef extern from "Python.h":
    # Declared anew: the exception it sets must stay set, not be raised in the callback.
    int PyErr_CheckSignals() noexcept


TENSORS = ("embedding", "attn_norm", "q_proj", "k_proj", "v_proj", "o_proj", "mlp_norm", "gate_proj", "up_proj", "down_proj",
           "final_norm", "head", "q_norm", "k_norm", "router", "expert_gate_proj", "expert_up_proj", "expert_down_proj",
           "router_bias", "shared_gate_proj", "shared_up_proj", "shared_down_proj",
           "q_bias", "k_bias", "v_bias")
ROUTINGS = ("softmax", "sigmoid")
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2, "int8": 3, "int4": 4, "bfloat16_fast": 5}


cdef bint exiting = False      # the interpreter ends: forward passes of daemon threads stop, without asking for the GIL
cdef int calls_in_process = 0


@atexit.register
def _stop_at_exit():
    global exiting
    exiting = True
    for _ in range(100):
        if calls_in_process == 0:
            return
        time.sleep(0.01)


def _forget_calls():
    """In a forked child: the threads of these calls are the parent's."""
    global calls_in_process
    calls_in_process = 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_calls)


cdef cpp.bool should_stop(void* context) noexcept nogil:
    return True if exiting else check_signals(context)


cdef bint check_signals(void* context) noexcept with gil:
    # A Python signal handler that raises leaves its exception set; the C++ side then unwinds with Cancelled.
    if (<NativeModel> context).closing:
        return True
    return PyErr_CheckSignals() != 0


cdef cpp.Interrupt interrupt_of(NativeModel model) noexcept:
    cdef cpp.Interrupt interrupt
    interrupt.poll = should_stop
    interrupt.context = <void*> model
    return interrupt


def isas() -> dict:
    """Every build of the kernels, slowest first, and whether this processor can run it."""
    cdef vector[cpp.Isa] builds = cpp.compiled_isas()
    return {isa.name.decode(): isa.supported for isa in builds}


def active_isa() -> str:
    """The build that new models use. Raises ValueError when LLADA_ISA names one that is absent or unsupported."""
    return cpp.active_isa().decode()


cdef object as_bits(array, what):
    """A C-contiguous view of float32, float16 or bfloat16 data as integers, and the C++ dtype."""
    name = array.dtype.name
    if name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{what}: expected float32, float16 or bfloat16, found {name}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{what}: expected a C-contiguous array")
    return array.view(np.uint32 if name == "float32" else np.uint16).reshape(-1), DTYPES[name]


cdef const void* address(bits) except? NULL:
    cdef const unsigned char[::1] view = bits.view(np.uint8)
    return &view[0]


cdef int group_of(const int8_t[:, ::1] values, const float[:, ::1] scales, what) except 0:
    """How many columns of integer rows share a scale."""
    cdef int64_t rows = values.shape[0], columns = values.shape[1]
    if rows == 0 or columns == 0 or scales.shape[0] != rows or scales.shape[1] == 0 or columns % scales.shape[1]:
        raise ValueError(f"{what}: expected scales of groups of ({rows}, {columns}) values, "
                         f"found shape ({scales.shape[0]}, {scales.shape[1]})")
    return columns // scales.shape[1]


cdef class NativeModel:
    """A LLaDA in C++. Satisfies `llada_native.backend.Backend`.

    Parameters
    ----------
    config : llada_native.config.ModelConfig
    dtype : {"float32", "bfloat16", "float16", "int8", "int4", "bfloat16_fast"}
        Of the weights in memory.
    num_threads : int
    isa : str
        A build of the kernels; empty for `active_isa()`.

    Raises
    ------
    ValueError
        An impossible shape, dtype, thread count or instruction set.
    MemoryError
        The weights do not fit.
    """
    cdef unique_ptr[cpp.Model] model
    cdef bint closing
    cdef int calls
    cdef readonly object config
    cdef readonly str dtype
    cdef readonly str name

    def __cinit__(self, config, str dtype, int num_threads, str isa="", int group=128, str packed_file="", str tag=""):
        cdef cpp.ModelConfig c
        c.layers, c.d_model, c.heads, c.kv_heads = config.n_layers, config.d_model, config.n_heads, config.n_kv_heads
        c.head_dim, c.mlp_hidden, c.vocabulary = config.head_dim, config.mlp_hidden_size, config.vocabulary
        c.norm_eps, c.rope_theta, c.tied_head = config.rms_norm_eps, config.rope_theta, config.weight_tying
        c.qk_norm, c.experts, c.experts_per_token = config.qk_norm, config.n_experts, config.experts_per_token
        c.expert_hidden, c.dense_layers = config.expert_hidden_size, config.dense_layers
        c.rotary_dim, c.attention_block = config.rotary_dim, config.attention_block
        c.routing = <cpp.Routing> <int> ROUTINGS.index(config.routing)
        c.expert_groups, c.chosen_groups, c.expert_scale = config.expert_groups, config.chosen_groups, config.expert_scale
        c.shared_expert_hidden = config.shared_expert_hidden_size
        c.qkv_bias = config.qkv_bias
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(DTYPES)}, found {dtype!r}")
        cdef string kernels = isa.encode(), file = os.fsencode(packed_file), file_tag = tag.encode()
        cdef cpp.WeightFormat* format = new cpp.WeightFormat(<cpp.DType> <int> DTYPES[dtype], group)
        try:
            with nogil:  # which clears gigabytes
                self.model.reset(new cpp.Model(c, format[0], kernels, num_threads, file, file_tag))
        finally:
            del format
        self.config, self.dtype, self.name = config, dtype, "native"

    cdef cpp.Model* get(self) except NULL:
        if self.closing or self.model.get() == NULL:
            raise ValueError("the model is closed")
        return self.model.get()

    cdef int require_columns(self, str tensor, int64_t layer, int64_t expert, int64_t rows, array) except -1:
        """Rows of an array are read as wide as the tensor's."""
        cdef int64_t columns = self.get().columns(<cpp.Tensor> <int> TENSORS.index(tensor), layer, expert)
        if columns and array.size != rows * columns:
            raise ValueError(f"{tensor}: expected rows of {columns} columns, found shape {tuple(array.shape)}")
        return 0

    def save(self, str path, str tag):
        """Write all weights as they lie in memory; ``NativeModel(..., packed_file=path, tag=tag)`` maps them."""
        cdef cpp.Model* model
        cdef string where = os.fsencode(path), name = tag.encode()
        self.enter()
        try:
            model = self.get()
            with nogil:
                model.save(where, name)
        finally:
            self.leave()

    def load(self, str tensor, int64_t layer, int64_t row_begin, array, int64_t expert=-1):
        """Store rows [row_begin, row_begin + len(array)) of a matrix, or a whole vector.

        Raises
        ------
        OverflowError
            A finite value that float16 weights cannot hold, or the float16 scales of integer ones.
        """
        cdef cpp.Model* model
        cdef cpp.Tensor role = <cpp.Tensor> <int> TENSORS.index(tensor)
        bits, code = as_bits(array, tensor)
        cdef cpp.DType source = <cpp.DType> <int> code
        cdef const void* data = address(bits)
        cdef int64_t rows = array.shape[0]
        self.enter()
        try:
            model = self.get()
            self.require_columns(tensor, layer, expert, rows, array)
            with nogil:
                model.load(role, layer, row_begin, rows, data, source, expert)
        finally:
            self.leave()

    def load_integers(self, str tensor, int64_t layer, int64_t row_begin, const int8_t[:, ::1] values, const float[:, ::1] scales,
                      int64_t expert=-1):
        """Store rows of a matrix that are integers already, w = scale * value, as they are.

        Parameters
        ----------
        values : int8 [rows, columns]
        scales : float32 [rows, columns / group]

        Returns
        -------
        bool
            False, and nothing is stored, when the matrix is not held as such integers in such groups, or float16 does not hold the scales.
        """
        cdef cpp.Model* model
        cdef cpp.Tensor role = <cpp.Tensor> <int> TENSORS.index(tensor)
        cdef int64_t rows = values.shape[0]
        cdef bint stored
        cdef int group = group_of(values, scales, tensor)
        self.enter()
        try:
            model = self.get()
            self.require_columns(tensor, layer, expert, rows, values)
            with nogil:
                stored = model.load_integers(role, layer, row_begin, rows, &values[0, 0], &scales[0, 0], group, expert)
        finally:
            self.leave()
        return stored

    def hidden(self, const int32_t[::1] tokens, const int32_t[::1] lengths, const int32_t[::1] rows,
               const int32_t[::1] positions=None, caches=None, const int32_t[::1] slots=None, const int32_t[::1] places=None,
               const int32_t[::1] twins=None):
        """The final-norm output of the selected rows, float32 [len(rows), d_model].

        Parameters
        ----------
        tokens : int32 [sum(lengths)]
            The requests end to end.
        lengths : int32 [requests]
        rows : int32 [selected]
            Ascending indices into tokens.
        positions : int32 [requests], optional
            Where each request's first token stands; above 0, its cache holds what is before. Default 0.
        caches : sequence of NativeKVCache or None, optional
            One a request.
        slots : int32 [sum(lengths)], optional
            Instead of positions, where the keys and values of each token lie in its request's cache: ascending, and from the cache's
            length on without a gap.
        places : int32 [sum(lengths)], optional
            The position of each token for RoPE. Default: its slot.
        twins : int32 [sum(lengths)], optional
            For a shadow, the slot of its twin; -1 for other tokens. Shadows are the last of a request, behind at least one other token,
            their slots are -1, and their default place is the twin's slot. What they see: ``llada_native.backend.Backend.hidden``.
        """
        cdef cpp.Model* model
        cdef NativeKVCache cache
        cdef vector[cpp.KVCache*] pointers
        for request, length in enumerate(lengths):
            if length < 1:
                raise ValueError(f"lengths[{request}]: expected at least 1, found {length}")
        if sum(lengths) != tokens.shape[0]:
            raise ValueError(f"lengths: expected a sum of {tokens.shape[0]} tokens, found {sum(lengths)}")
        if positions is not None and positions.shape[0] != lengths.shape[0]:
            raise ValueError(f"positions: expected one for each of {lengths.shape[0]} requests, found {positions.shape[0]}")
        for name, each in (("slots", slots), ("places", places), ("twins", twins)):
            if each is not None and len(each) != tokens.shape[0]:
                raise ValueError(f"{name}: expected one for each of {tokens.shape[0]} tokens, found {len(each)}")
        held = [] if caches is None else list(caches)
        if held and len(held) != lengths.shape[0]:
            raise ValueError(f"caches: expected one for each of {lengths.shape[0]} requests, found {len(held)}")
        out = np.empty((rows.shape[0], self.config.d_model), np.float32)
        if rows.shape[0] == 0 and not any(c is not None for c in held):
            return out
        if lengths.shape[0] == 0 or tokens.shape[0] == 0:
            raise ValueError("tokens: expected at least one")
        cdef float[:, ::1] view = out
        cdef cpp.RaggedBatch batch
        batch.tokens, batch.lengths, batch.requests = &tokens[0], &lengths[0], lengths.shape[0]
        batch.rows, batch.selected = &rows[0] if rows.shape[0] else NULL, rows.shape[0]
        if positions is not None:
            batch.positions = &positions[0]
        if slots is not None:
            batch.slots = &slots[0]
        if places is not None:
            batch.places = &places[0]
        if twins is not None:
            batch.twins = &twins[0]
        cdef float* target = &view[0, 0] if rows.shape[0] else NULL
        cdef cpp.Interrupt interrupt = interrupt_of(self)
        self.enter()
        try:
            model = self.get()
            for item in held:
                cache = item  # checks the type
                pointers.push_back(<cpp.KVCache*> NULL if item is None else cache.get())
            if held:
                batch.caches = pointers.data()
            for item in held:
                if item is not None:
                    (<NativeKVCache> item).calls += 1
            try:
                with nogil:
                    model.forward(batch, target, interrupt)
            finally:
                for item in held:
                    if item is not None:
                        (<NativeKVCache> item).leave()
        finally:
            self.leave()
        return out

    def create_kv_cache(self, str dtype="float32"):
        """An empty cache for one request of this model, which holds float32 or float16."""
        return NativeKVCache(self, dtype)

    def head(self, const float[:, ::1] hidden, int64_t begin, int64_t end, float[:, ::1] out):
        """out[rows, end - begin] = logits of the tokens begin to end; begin is a multiple of 32."""
        cdef cpp.Model* model
        if hidden.shape[1] != self.config.d_model:
            raise ValueError(f"hidden: expected {self.config.d_model} columns, found {hidden.shape[1]}")
        if out.shape[0] != hidden.shape[0] or out.shape[1] != end - begin:
            raise ValueError(f"out: expected shape ({hidden.shape[0]}, {end - begin}), found ({out.shape[0]}, {out.shape[1]})")
        if hidden.shape[0] == 0:
            return
        cdef cpp.Interrupt interrupt = interrupt_of(self)
        cdef int64_t rows = hidden.shape[0]
        self.enter()
        try:
            model = self.get()
            with nogil:
                model.head(&hidden[0, 0], rows, begin, end, &out[0, 0], interrupt)
        finally:
            self.leave()

    def close(self):
        """Free the weights. Calls in progress are cancelled; the last of them frees."""
        self.closing = True
        if self.calls == 0:
            self.model.reset()

    cdef void leave(self) noexcept:
        global calls_in_process
        self.calls -= 1
        calls_in_process -= 1
        if self.closing and self.calls == 0:
            self.model.reset()

    cdef void enter(self) noexcept:
        """Counted before the model is looked up, so that close() on another thread does not free it in between."""
        global calls_in_process
        self.calls += 1
        calls_in_process += 1

    @property
    def closed(self):
        return self.closing

    @property
    def isa(self):
        return self.get().isa().decode()

    @property
    def num_threads(self):
        return self.get().threads()

    @num_threads.setter
    def num_threads(self, int threads):
        self.get().set_threads(threads)

    @property
    def weight_bytes(self):
        return self.get().weight_bytes()

    @property
    def workspace_bytes(self):
        return self.get().workspace_bytes()


cdef class NativeKVCache:
    """Keys and values of one request of a `NativeModel`, stored after RoPE. Satisfies `llada_native.backend.Cache`.

    As float16 they take half the memory, and a forward pass widens one layer of them at a time into the model's workspace. Freed with
    the object or by `close`; a forward pass that is using it finishes first.
    """
    cdef unique_ptr[cpp.KVCache] cache
    cdef int calls
    cdef bint closing
    cdef int64_t settled_length, settled_bytes  # before the forward pass in progress, which changes the C++ object

    cdef readonly str dtype

    def __cinit__(self, NativeModel model not None, str dtype="float32"):
        require_cache_dtype(dtype)
        self.dtype = dtype
        self.cache.reset(new cpp.KVCache(model.get()[0], <cpp.DType> <int> DTYPES[dtype]))

    cdef cpp.KVCache* get(self) except NULL:
        if self.closing:
            raise ValueError("the KV cache was dropped")
        return self.cache.get()

    cdef void leave(self) noexcept:
        self.calls -= 1
        if self.calls == 0:
            self.settle()
            if self.closing:
                self.cache.reset()

    cdef void settle(self) noexcept:
        self.settled_length, self.settled_bytes = self.cache.get().length(), self.cache.get().bytes()

    def close(self):
        self.closing = True
        if self.calls == 0:
            self.cache.reset()

    @property
    def closed(self):
        return self.closing

    @property
    def length(self):
        """Positions held."""
        self.get()
        return self.settled_length

    def truncate(self, int64_t length):
        """Forget positions from `length` on."""
        cdef cpp.KVCache* cache = self.get()
        if self.calls:
            raise ValueError("the KV cache is in use by a forward pass")
        cache.truncate(length)
        self.settle()

    @property
    def bytes(self):
        self.get()
        return self.settled_bytes

    @property
    def bytes_per_token(self):
        return self.get().bytes_per_token()

    @property
    def handle(self):
        """The address of the C++ object."""
        return <uintptr_t> self.get()


cdef ptrdiff_t row_stride(float[:, :] rows, str name) except -1:
    """Numbers from one row to the next. NumPy leaves the strides of a dimension of one undefined."""
    cdef ptrdiff_t width = rows.shape[1], stride = rows.strides[0]
    if rows.shape[0] == 1:
        stride = 4 * width
    if (width > 1 and rows.strides[1] != 4) or stride < 4 * width or stride % 4:
        raise ValueError(f"{name}: expected rows of numbers side by side, found strides {(rows.strides[0], rows.strides[1])}")
    return stride // 4


cdef class PackedLinear:
    """One linear layer on its own, for tests and benchmarks: ``out = x @ weight.T``. The weight is of floats or `IntegerRows`."""
    cdef unique_ptr[cpp.Linear] weight
    cdef cpp.QuantizedRows quantized
    cdef const cpp.KernelTable* kernels
    cdef readonly tuple shape

    def __cinit__(self, weight, str dtype, str isa="", int group=128):
        cdef string name = isa.encode() if isa else cpp.active_isa()
        self.kernels = &cpp.kernels_for(name)
        self.shape = weight.values.shape if isinstance(weight, IntegerRows) else weight.shape
        cdef cpp.WeightFormat* format = new cpp.WeightFormat(<cpp.DType> <int> DTYPES[dtype], group)
        try:
            self.weight.reset(new cpp.Linear(self.shape[0], self.shape[1], format[0], self.kernels[0]))
            self.weight.get().allocate()
        finally:
            del format
        cdef cpp.Interrupt never
        cdef unique_ptr[cpp.Team] team
        cdef int64_t rows = self.shape[0]
        cdef const int8_t[:, ::1] values
        cdef const float[:, ::1] scales
        cdef int stored_group
        cdef bint stored
        if isinstance(weight, IntegerRows):
            values, scales = weight.values, weight.scales
            stored_group = group_of(values, scales, "weight")
            with nogil:
                team.reset(new cpp.Team(1, never))
                stored = self.weight.get().load_integers(team.get()[0], 0, rows, &values[0, 0], &scales[0, 0], stored_group)
            if not stored:
                raise ValueError(f"weight: expected integers that {dtype} holds in groups of {group} with scales of float16, found others "
                                 f"in groups of {stored_group}")
            return
        bits, code = as_bits(weight, "weight")
        cdef const void* data = address(bits)
        cdef cpp.DType source = <cpp.DType> <int> code
        with nogil:  # a forward pass whose turn it is may need the GIL to poll
            team.reset(new cpp.Team(1, never))
            self.weight.get().load(team.get()[0], 0, rows, data, source)

    def __call__(self, float[:, :] x, float[:, :] out, int threads=1, bint accumulate=False):
        """``out = x @ weight.T``, or added to out. Rows may lie apart, with their numbers side by side."""
        if x.shape[1] != self.shape[1] or out.shape[1] != self.shape[0] or x.shape[0] != out.shape[0] or x.shape[0] == 0:
            raise ValueError("x or out does not fit the weight")
        if not 1 <= threads <= 1024:
            raise ValueError(f"threads: expected 1 to 1024, found {threads}")
        x_stride, out_stride = row_stride(x, "x"), row_stride(out, "out")
        cdef cpp.Rows source, target
        cdef vector[cpp.Product] products
        cdef cpp.Interrupt never
        cdef unique_ptr[cpp.Team] team
        cdef int64_t rows = x.shape[0]
        source.data, source.stride = &x[0, 0], x_stride
        target.data, target.stride = &out[0, 0], out_stride
        with nogil:
            team.reset(new cpp.Team(threads, never))
            products.push_back(cpp.product(self.weight.get()[0], source, rows, target, accumulate))
            cpp.linear(team.get()[0], self.kernels[0], self.quantized, products)


def quantize_group(const float[::1] w, str dtype, uint8_t[::1] codes, str isa=""):
    """Codes of one group of weights; returns their scale."""
    cdef string name = isa.encode() if isa else cpp.active_isa()
    return cpp.quantize_group(cpp.kernels_for(name), &w[0], w.shape[0], <cpp.DType> <int> DTYPES[dtype], &codes[0])


def route(float[:, ::1] logits, int64_t chosen, const float[::1] bias=None, int64_t groups=1, int64_t chosen_groups=1, double scale=1):
    """The experts of each row [rows, chosen] by its logits [rows, experts], and their weights. The logits become probabilities.

    With a bias [experts] their sigmoids, of the experts of a few groups; without one their softmax.
    """
    cdef int64_t experts = logits.shape[1]
    if not 1 <= chosen_groups <= groups or experts % groups:
        raise ValueError(f"groups: expected a divisor of {experts} and no more chosen ones, found {groups} and {chosen_groups}")
    if not 1 <= chosen <= experts // groups * chosen_groups:
        raise ValueError(f"chosen: expected 1 to {experts // groups * chosen_groups}, found {chosen}")
    if bias is not None and bias.shape[0] != experts:
        raise ValueError(f"bias: expected {experts} values, found {bias.shape[0]}")
    cdef cpp.Choice choice
    choice.experts, choice.chosen, choice.routing = experts, chosen, cpp.Routing.softmax
    choice.groups, choice.chosen_groups, choice.scale = groups, chosen_groups, scale
    if bias is not None:
        choice.routing, choice.bias = cpp.Routing.sigmoid, &bias[0]
    cdef float[::1] scores = np.empty(experts, np.float32)
    ids, weights = np.empty((logits.shape[0], chosen), np.int32), np.empty((logits.shape[0], chosen), np.float32)
    cdef int32_t[:, ::1] id_view = ids
    cdef float[:, ::1] weight_view = weights
    for r in range(logits.shape[0]):
        cpp.route(choice, &logits[r, 0], &scores[0], &id_view[r, 0], &weight_view[r, 0])
    return ids, weights


include "_kernels.pxi"
