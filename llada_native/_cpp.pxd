# Mirror of include/llada and of what lies behind it. Only _native cimports this file: it alone links the C++ library.
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint16_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

from llada_native._kernels cimport AttentionTile, Bf16Tile, Extremes, FloatTile, KernelTable, QuantizedTile, TileSetup


cdef extern from "llada/types.h" namespace "llada":
    cdef enum class DType(int32_t):
        float32
        bfloat16
        float16
        int8
        int4
        bfloat16_fast

    cdef enum class Routing(int32_t):
        softmax
        sigmoid

    cdef cppclass WeightFormat:
        WeightFormat(DType, int)

    cdef cppclass Interrupt:
        bool (*poll)(void*) noexcept nogil
        void* context


cdef extern from * nogil:
    """
    #include <Python.h>
    #include <new>
    #include <stdexcept>
    #include "llada/types.h"

    // C++ exceptions to Python ones. A signal handler's exception, already set while polling, wins over Cancelled.
    static void llada_raise_python_error() {
      try {
        throw;
      } catch (const llada::Cancelled& e) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_InterruptedError, e.what());
      } catch (const std::bad_alloc&) {
        PyErr_NoMemory();
      } catch (const std::invalid_argument& e) {
        PyErr_SetString(PyExc_ValueError, e.what());
      } catch (const std::out_of_range& e) {
        PyErr_SetString(PyExc_OverflowError, e.what());
      } catch (const std::exception& e) {
        // Not a plain RuntimeError: a signal handler of the caller may raise one of those.
        PyObject* errors = PyImport_ImportModule("llada_native.errors");
        PyObject* engine_error = errors ? PyObject_GetAttrString(errors, "EngineError") : nullptr;
        if (engine_error) PyErr_SetString(engine_error, e.what());
        Py_XDECREF(engine_error);
        Py_XDECREF(errors);
      }
    }
    """
    void llada_raise_python_error() except *


cdef extern from "llada/runtime.h" namespace "llada" nogil:
    cdef cppclass Isa:
        string name
        bool supported

    vector[Isa] compiled_isas() except +llada_raise_python_error
    string active_isa() except +llada_raise_python_error


cdef extern from "llada/kv_cache.h" namespace "llada" nogil:
    cdef cppclass KVCache:
        KVCache(const Model&, DType) except +llada_raise_python_error
        int64_t length()
        void truncate(int64_t) except +llada_raise_python_error
        int64_t bytes()
        int64_t bytes_per_token()


cdef extern from "llada/model.h" namespace "llada" nogil:
    cdef cppclass ModelConfig:
        int64_t layers, d_model, heads, kv_heads, head_dim, mlp_hidden, vocabulary
        double norm_eps, rope_theta
        bool tied_head, qk_norm, qkv_bias
        int64_t experts, experts_per_token, expert_hidden
        vector[int64_t] dense_layers
        int64_t rotary_dim, attention_block
        Routing routing
        int64_t expert_groups, chosen_groups, shared_expert_hidden
        double expert_scale

    cdef enum class Tensor(int32_t):
        pass

    cdef cppclass RaggedBatch:
        const int32_t* tokens
        const int32_t* lengths
        int64_t requests
        const int32_t* rows
        int64_t selected
        const int32_t* positions
        KVCache* const* caches
        const int32_t* slots
        const int32_t* places
        const int32_t* twins

    cdef cppclass Model:
        Model(const ModelConfig&, WeightFormat, const string&, int, const string&, const string&) except +llada_raise_python_error
        void save(const string&, const string&) except +llada_raise_python_error
        void load(Tensor, int64_t, int64_t, int64_t, const void*, DType, int64_t) except +llada_raise_python_error
        bool load_integers(Tensor, int64_t, int64_t, int64_t, const int8_t*, const float*, int, int64_t) except +llada_raise_python_error
        int64_t columns(Tensor, int64_t, int64_t) except +llada_raise_python_error
        void forward(const RaggedBatch&, float*, const Interrupt&) except +llada_raise_python_error
        void head(const float*, int64_t, int64_t, int64_t, float*, const Interrupt&) except +llada_raise_python_error
        const string& isa()
        int threads()
        void set_threads(int) except +llada_raise_python_error
        int64_t weight_bytes()
        int64_t workspace_bytes()


cdef extern from "kernels/dispatch.h" namespace "llada" nogil:
    const KernelTable& kernels_for(const string&) except +llada_raise_python_error


cdef extern from "base/team.h" namespace "llada" nogil:
    cdef cppclass Team:
        Team(int, const Interrupt&) except +llada_raise_python_error


cdef extern from "ops/quantize.h" namespace "llada" nogil:
    float quantize_group(const KernelTable&, const float*, int, DType, uint8_t*) except +llada_raise_python_error


cdef extern from "ops/experts.h" namespace "llada" nogil:
    cdef cppclass Choice:
        int64_t experts, chosen
        Routing routing
        int64_t groups, chosen_groups
        double scale
        const float* bias

    void route(const Choice&, float*, float*, int32_t*, float*)


cdef extern from "ops/linear.h" namespace "llada" nogil:
    cdef cppclass Rows:
        float* data
        ptrdiff_t stride

    cdef cppclass Linear:
        Linear()
        Linear(int64_t, int64_t, WeightFormat, const KernelTable&) except +llada_raise_python_error
        void allocate() except +llada_raise_python_error
        void load(Team&, int64_t, int64_t, const void*, DType) except +llada_raise_python_error
        bool load_integers(Team&, int64_t, int64_t, const int8_t*, const float*, int) except +llada_raise_python_error
        int64_t bytes()

    cdef cppclass QuantizedRows:
        pass

    cdef cppclass Product:
        pass

    Product product(const Linear&, Rows, int64_t, Rows, bool)
    void linear(Team&, const KernelTable&, QuantizedRows&, const vector[Product]&) except +llada_raise_python_error
