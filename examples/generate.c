/* Fills an answer block by block, one token a round, and prints its ids.
 *
 *   inc=$(python -c "import llada_native; print(llada_native.get_include())")
 *   lib=$(python -c "import llada_native; print(llada_native.get_library())")
 *   cc -std=c99 -I"$inc" generate.c "$lib" -Wl,-rpath,"$(dirname "$lib")" -o generate
 *   ./generate FOLDER 1,2,3 GEN_LENGTH BLOCK_LENGTH
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llada/llada.h"

static int library_error(const char* what) {
  fprintf(stderr, "%s: %s\n", what, lladaLastError());
  return 1;
}

/* A whole number up to 2^31 at *text, which moves behind it; -1 when there is none. */
static long long number(const char** text) {
  char* end;
  long long value;
  if (**text < '0' || **text > '9') return -1;
  errno = 0;
  value = strtoll(*text, &end, 10);
  *text = end;
  return errno || value > INT32_MAX ? -1 : value;
}

static uint32_t length_argument(const char* name, const char* text) {
  const char* end = text;
  const long long value = number(&end);
  if (value < 1 || *end) {
    fprintf(stderr, "%s: expected a number of at least 1, found '%s'\n", name, text);
    return 0;
  }
  return (uint32_t)value;
}

/* Reads "1,2,3" into ids; returns how many, or 0 when that is not a list of ids. */
static uint32_t read_ids(const char* text, uint32_t* ids) {
  uint32_t n = 0;
  for (;; ++text) {
    const long long id = number(&text);
    if (id < 0) return 0;
    ids[n++] = (uint32_t)id;
    if (*text != ',') return *text ? 0 : n;
  }
}

/* Fills canvas[prompt, prompt + answer), all masks, block after block. Returns 0, or 1 after an error. */
static int generate(LLaDAModel* model, uint32_t* canvas, uint32_t prompt, uint32_t answer, uint32_t block) {
  const uint32_t length = prompt + answer;
  uint32_t end, token, position;
  for (end = prompt + block; end <= length; end += block)
    for (;;) {
      if (inferBatchLLaDA(model, canvas, length, &length, 1, NULL, NULL, NULL, NULL, NULL, &end, NULL, NULL, &token, &position, NULL))
        return library_error("inferBatchLLaDA");
      if (position == LLADA_NONE) break;
      canvas[position] = token;
    }
  return 0;
}

int main(int argc, char** argv) {
  LLaDAModel* model = NULL;
  LLaDAMeta meta;
  uint32_t *canvas = NULL, prompt, answer, block, i;
  int failed = 1;
  if (argc != 5) {
    fprintf(stderr, "usage: %s FOLDER PROMPT_IDS GEN_LENGTH BLOCK_LENGTH   (ids such as 1,2,3)\n", argv[0]);
    return 2;
  }
  answer = length_argument("GEN_LENGTH", argv[3]);
  block = length_argument("BLOCK_LENGTH", argv[4]);
  if (!answer || !block) return 2;
  if (answer % block) {
    fprintf(stderr, "BLOCK_LENGTH: expected a divisor of GEN_LENGTH (%u), found %u\n", (unsigned)answer, (unsigned)block);
    return 2;
  }
  canvas = malloc((strlen(argv[2]) + 1 + answer) * sizeof *canvas);
  if (!canvas) {
    fprintf(stderr, "out of memory\n");
    return 1;
  }
  prompt = read_ids(argv[2], canvas);
  if (!prompt) {
    fprintf(stderr, "PROMPT_IDS: expected ids such as 1,2,3, found '%s'\n", argv[2]);
    free(canvas);
    return 2;
  }
  model = lladaLoadModel(argv[1], 0);
  if (!model || lladaModelMeta(model, &meta)) {
    library_error("lladaLoadModel");
  } else {
    for (i = 0; i < answer; ++i) canvas[prompt + i] = meta.mask_token;
    failed = generate(model, canvas, prompt, answer, block);
    for (i = 0; !failed && i < answer; ++i) printf("%u%c", (unsigned)canvas[prompt + i], i + 1 < answer ? ' ' : '\n');
  }
  destroyLLaDAModel(model);
  free(canvas);
  return failed;
}
