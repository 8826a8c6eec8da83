// Keys and values of all layers, in pages that are added as a conversation grows and never move.
#pragma once

#include <vector>

#include "trimtab/attention.h"
#include "trimtab/buffer.h"
#include "trimtab/model.h"

namespace trimtab {

class Cache {
 public:
  Cache(const Model& model, Kept kept);
  void grow(int64_t positions);  // at least so many; throws std::bad_alloc
  Kept kept() const { return kept_; }
  int64_t bytes() const;

  // Blocks by page, of one head of one layer.
  const uint8_t* const* blocks(int64_t layer, int64_t head) const {
    return layers_[static_cast<std::size_t>(layer)].blocks[static_cast<std::size_t>(head)].data();
  }
  uint8_t* block(int64_t layer, int64_t head, int64_t page) const {
    return const_cast<uint8_t*>(blocks(layer, head)[page]);
  }

 private:
  struct OfLayer {
    int64_t block_bytes;
    std::vector<Buffer> pages;
    std::vector<std::vector<const uint8_t*>> blocks;  // [head][page]
  };
  Kept kept_;
  std::vector<OfLayer> layers_;
};

static constexpr int64_t padded_head(int64_t dim) { return ceil_to(dim, kRows); }

}  // namespace trimtab
