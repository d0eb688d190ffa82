// config.json -> a validated configuration, by the rules of llada_native/config.py.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "checkpoint/json.h"
#include "llada/model.h"

namespace llada {

struct FolderConfig {
  ModelConfig model;
  int64_t max_tokens;
  std::optional<int64_t> mask_token;
};

// Throws FormatError and UnsupportedError; `source` begins their messages.
FolderConfig read_config(const Json& json, const std::string& source);

}  // namespace llada
