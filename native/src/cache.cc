#include "trimtab/cache.h"

namespace trimtab {

Cache::Cache(const Model& model, Kept kept) : kept_(kept) {
  for (const Layer& layer : model.layers) {
    OfLayer made;
    made.block_bytes = block_bytes(kept, padded_head(layer.dim));
    made.blocks.resize(static_cast<std::size_t>(layer.kv_heads));
    layers_.push_back(std::move(made));
  }
}

void Cache::grow(int64_t positions) {
  const auto pages = static_cast<std::size_t>((positions + kPage - 1) / kPage);
  for (OfLayer& layer : layers_) {
    while (layer.pages.size() < pages) {
      Buffer page(static_cast<std::size_t>(layer.block_bytes) * layer.blocks.size());
      for (auto& of_head : layer.blocks) of_head.reserve(layer.pages.size() + 1);
      layer.pages.reserve(layer.pages.size() + 1);
      for (std::size_t head = 0; head < layer.blocks.size(); ++head)
        layer.blocks[head].push_back(page.data() + static_cast<int64_t>(head) * layer.block_bytes);
      layer.pages.push_back(std::move(page));
    }
  }
}

int64_t Cache::bytes() const {
  int64_t total = 0;
  for (const OfLayer& layer : layers_)
    total += static_cast<int64_t>(layer.pages.size() * layer.blocks.size()) * layer.block_bytes;
  return total;
}

}  // namespace trimtab
