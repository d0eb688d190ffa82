/* The C interface of libllada: LLaDA masked diffusion language models on CPUs. docs/c_api.md has examples.
 *
 * No call throws, exits or prints. Calls that return int return a LLaDAStatus; calls that return a pointer return NULL on error.
 * lladaLastStatus() and lladaLastError() tell about the last call of this thread. On an error, output arrays stay as they were,
 * unless it is said otherwise. */
#ifndef LLADA_LLADA_H_
#define LLADA_LLADA_H_

#include <stdint.h>

#if defined(_WIN32) && defined(LLADA_BUILDING)
#define LLADA_API __declspec(dllexport)
#elif defined(_WIN32)
#define LLADA_API __declspec(dllimport)
#elif defined(__GNUC__)
#define LLADA_API __attribute__((visibility("default")))
#else
#define LLADA_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define LLADA_NONE UINT32_MAX /* no token, no position */

typedef enum LLaDAStatus {
  LLADA_OK = 0,
  LLADA_INVALID_ARGUMENT = 1,
  LLADA_OUT_OF_MEMORY = 2,
  LLADA_UNSUPPORTED = 3, /* device, architecture or dtype */
  LLADA_BAD_FILE = 4,    /* a folder that cannot be read, is malformed or contradicts itself */
  LLADA_NOT_FINITE = 5,  /* a row of logits is NaN or has no finite value: the weights are damaged */
  LLADA_INTERNAL = 6
} LLaDAStatus;

/* What callers pass is int: any value is then defined, and wrong ones can be refused. */
typedef int LLaDADType;
enum {
  LLADA_FLOAT32 = 0,
  LLADA_BFLOAT16 = 1,
  LLADA_FLOAT16 = 2,
  LLADA_INT8 = 3, /* of weights in memory only: integers with a float16 scale for every group of inputs of an output channel */
  LLADA_INT4 = 4, /* likewise; the embedding is then bfloat16 and the head int8, for both */
  LLADA_BFLOAT16_FAST = 5 /* of weights in memory only: bfloat16, multiplied with activations that are rounded to bfloat16 */
};

#define LLADA_DEFAULT_GROUP_SIZE 64 /* weights that share a scale, where group_size is 0 */

typedef int LLaDADevice;
enum {
  LLADA_CPU = 0, /* the only one of this build */
  LLADA_NVIDIA = 1,
  LLADA_CAMBRICON = 2,
  LLADA_ASCEND = 3,
  LLADA_METAX = 4,
  LLADA_MOORE = 5,
  LLADA_ILUVATAR = 6,
  LLADA_KUNLUN = 7,
  LLADA_HYGON = 8
};

typedef struct LLaDAModel LLaDAModel;     /* calls from several threads take turns */
typedef struct LLaDAKVCache LLaDAKVCache; /* keys and values of one request; one call at a time uses it */

typedef struct LLaDAMeta {
  LLaDADType dtype;         /* of the weights in memory, any; lladaGroupSize tells the groups of integers */
  LLaDADType weights_dtype; /* of the arrays in LLaDAWeights, a float; of a loaded folder, the same as dtype */
  uint32_t layers;          /* transformer blocks */
  uint32_t d_model;         /* width of the residual stream */
  uint32_t heads;           /* of the queries */
  uint32_t kv_heads;        /* of keys and values; divides heads */
  uint32_t head_dim;        /* even, up to 256 */
  uint32_t mlp_hidden;      /* width of the gated MLP */
  uint32_t vocabulary;      /* rows of the embedding and of the head */
  uint32_t max_tokens;      /* most positions of a request */
  uint32_t mask_token;      /* or LLADA_NONE; inferBatchLLaDA needs it */
  int32_t tied_head;        /* 1: the embedding is also the head */
  double norm_eps;          /* added to the mean square in RMSNorm */
  double rope_theta;        /* base of the rotary frequencies */
} LLaDAMeta;

/* Row-major [out, in], any alignment. */
typedef struct LLaDAWeights {
  const void* embedding;         /* [vocabulary, d_model] */
  const void* final_norm;        /* [d_model] */
  const void* head;              /* [vocabulary, d_model]; NULL when tied */
  const void* const* attn_norm;  /* [layers] of [d_model] */
  const void* const* q_proj;     /* [layers] of [heads * head_dim, d_model] */
  const void* const* k_proj;     /* [layers] of [kv_heads * head_dim, d_model] */
  const void* const* v_proj;     /* [layers] of [kv_heads * head_dim, d_model] */
  const void* const* o_proj;     /* [layers] of [d_model, heads * head_dim] */
  const void* const* mlp_norm;   /* [layers] of [d_model] */
  const void* const* gate_proj;  /* [layers] of [mlp_hidden, d_model] */
  const void* const* up_proj;    /* [layers] of [mlp_hidden, d_model] */
  const void* const* down_proj;  /* [layers] of [d_model, mlp_hidden] */
} LLaDAWeights;

/* ---- models */

/* Packs the weights, which may be freed afterwards; integers are quantised in groups of LLADA_DEFAULT_GROUP_SIZE. A finite weight above
 * 65504 in magnitude cannot be held as float16, nor one of 8 (int4) or 127 (int8) times that by its scale: an invalid argument. ndev is 1
 * and dev_ids NULL or {0}: lladaSetThreads is how CPUs are shared. */
LLADA_API LLaDAModel* createLLaDAModel(const LLaDAMeta* meta, const LLaDAWeights* weights, LLaDADevice device, int ndev,
                                       const int* dev_ids);

/* createLLaDAModel with group_size weights of an output channel to a scale: 32, 64 or 128, or 0 for the default. Of no meaning for
 * floats. */
LLADA_API LLaDAModel* createLLaDAModelGrouped(const LLaDAMeta* meta, const LLaDAWeights* weights, LLaDADevice device, int ndev,
                                              const int* dev_ids, uint32_t group_size);

/* Loads a Hugging Face folder (a UTF-8 path): bfloat16 in memory when every tensor is BF16, else float32.
 * threads 0: LLADA_NUM_THREADS, or the cores this process may use. */
LLADA_API LLaDAModel* lladaLoadModel(const char* folder, int threads);

/* lladaLoadModel with the dtype in memory, whatever the folder's, and its group_size as in createLLaDAModelGrouped. */
LLADA_API LLaDAModel* lladaLoadModelAs(const char* folder, int threads, LLaDADType dtype, uint32_t group_size);

LLADA_API int lladaModelMeta(const LLaDAModel* model, LLaDAMeta* out);

LLADA_API uint32_t lladaGroupSize(const LLaDAModel* model); /* 0 for float weights, and on error */

/* No call may be using the model. NULL is fine. */
LLADA_API int destroyLLaDAModel(LLaDAModel* model);

LLADA_API int lladaSetThreads(LLaDAModel* model, int threads); /* 1 to 1024; results do not depend on it */
LLADA_API int lladaThreads(const LLaDAModel* model);           /* 0 on error */

/* ---- caches */

/* Empty; its memory grows with the request. */
LLADA_API LLaDAKVCache* createKVCache(const LLaDAModel* model);

/* Forgets the positions from length on; beyond what the cache holds is an error. Its memory stays for later use. */
LLADA_API int truncateKVCache(LLaDAKVCache* cache, uint32_t length);

/* Frees a cache. model may be NULL when it was destroyed before; a NULL cache is fine. */
LLADA_API int dropKVCache(const LLaDAModel* model, LLaDAKVCache* cache);

/* ---- work
 *
 * tokens[ntok] are nreq requests end to end, req_lens[nreq] tokens each. req_pos[nreq] are the positions of their first tokens (NULL
 * for 0), kv_caches[nreq] their caches (NULL for none, as any entry may be).
 *
 * A request without a cache stands at position 0. One with a cache may begin anywhere up to the cache's length: its keys and values
 * replace what the cache holds at its positions or extend it, and its rows see all that the cache then holds, behind the request too.
 * At position 0 with every token given, and a cache that holds no more positions than the request, it is the pass without a cache, bit
 * for bit; truncate a cache before another request uses it. A forward pass that fails leaves a cache with the positions before the
 * request. */

/* logits [ntok, vocabulary], row-major; what they hold after an error is undefined. */
LLADA_API int forwardBatchLLaDA(LLaDAModel* model, const uint32_t* tokens, uint32_t ntok, const uint32_t* req_lens, uint32_t nreq,
                                const uint32_t* req_pos, LLaDAKVCache* const* kv_caches, float* logits);

/* Uniform numbers in [0, 1), called from the calling thread; state is inferBatchLLaDA's uniform_state. */
typedef double (*LLaDAUniform)(void* state);

/* One round of denoising: in each request, every mask token at a position before block_ends[r] (NULL: the end of the request) draws a
 * token and its confidence, and the most confident mask wins (the first on ties): output[r] is its token, positions[r] its position,
 * confidence[r] (NULL: not wanted) its confidence. A request without such a mask gets LLADA_NONE and confidence 0.
 *
 * For a row of logits L: token = argmax N (the first on ties), N = L - T ln(-ln u), or L at temperature 0; confidence =
 * softmax(L)[token], float64. Above temperature 0, topk keeps the k largest L (the first on ties), then topp the fewest most likely of
 * softmax(L / T) whose mass reaches p. One u is drawn for each kept token, in ascending order, row after row.
 *
 * temperature[nreq] NULL: 0. topk[nreq] NULL or 0: off. topp[nreq] NULL or 1: off. uniform is needed for a temperature above 0. */
LLADA_API int inferBatchLLaDA(LLaDAModel* model, const uint32_t* tokens, uint32_t ntok, const uint32_t* req_lens, uint32_t nreq,
                              const uint32_t* req_pos, LLaDAKVCache* const* kv_caches, const float* temperature, const uint32_t* topk,
                              const float* topp, const uint32_t* block_ends, LLaDAUniform uniform, void* uniform_state, uint32_t* output,
                              uint32_t* positions, double* confidence);

/* ---- errors and version; these leave the last status as it is */

LLADA_API const char* lladaVersion(void);
LLADA_API const char* lladaLastError(void); /* "" after a success; valid until this thread's next call */
LLADA_API int lladaLastStatus(void);

#ifdef __cplusplus
}
#endif

#endif
