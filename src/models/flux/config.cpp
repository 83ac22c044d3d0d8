#include <fstream>
#include <nlohmann/json.hpp>

#include "core/check.h"
#include "flashomni/flux.h"

namespace flashomni {
namespace {

using Json = nlohmann::json;

Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) FO_FAIL(kIo, "flux: cannot open %s", path.c_str());
  Json json = Json::parse(file, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) FO_FAIL(kIo, "flux: %s is not a JSON object", path.c_str());
  return json;
}

// Reads fields by name; null and absent fields keep the default, as in diffusers.
class Fields {
 public:
  Fields(const Json& json, const std::filesystem::path& path) : json_(json), path_(path) {}

  void read(const char* name, int smallest, int& value) const {
    if (!json_.contains(name) || json_[name].is_null()) return;
    FO_CHECK(json_[name].is_number_integer(), "flux: %s: %s is %s, expected an integer",
             path_.c_str(), name, json_[name].dump().c_str());
    value = json_[name].get<int>();
    FO_CHECK(value >= smallest, "flux: %s: %s is %d, must be at least %d", path_.c_str(), name,
             value, smallest);
  }
  void read(const char* name, bool& value) const {
    if (!json_.contains(name) || json_[name].is_null()) return;
    FO_CHECK(json_[name].is_boolean(), "flux: %s: %s is %s, expected true or false", path_.c_str(),
             name, json_[name].dump().c_str());
    value = json_[name].get<bool>();
  }
  void read(const char* name, std::array<int, 3>& values) const {
    if (!json_.contains(name)) return;
    const Json& list = json_[name];
    bool fits = list.is_array() && list.size() == values.size();
    for (std::size_t i = 0; fits && i < values.size(); ++i) {
      fits = list[i].is_number_integer() && list[i] > 0 && list[i].get<int>() % 2 == 0;
      if (fits) values[i] = list[i];
    }
    FO_CHECK(fits, "flux: %s: %s is %s, expected three positive even integers", path_.c_str(), name,
             list.dump().c_str());
  }

 private:
  const Json& json_;
  const std::filesystem::path& path_;
};

}  // namespace

FluxConfig FluxConfig::from_json(const std::filesystem::path& path) {
  const Json json = read_json(path);
  const std::string class_name = json.value("_class_name", "");
  FO_CHECK(class_name == "FluxTransformer2DModel",
           "flux: %s: _class_name is '%s', expected FluxTransformer2DModel", path.c_str(),
           class_name.c_str());
  FluxConfig config;
  const Fields fields(json, path);
  int patch_size = 1;
  fields.read("patch_size", 1, patch_size);
  FO_CHECK(patch_size == 1, "flux: %s: patch_size is %d, only 1 is supported", path.c_str(),
           patch_size);
  fields.read("in_channels", 1, config.in_channels);
  config.out_channels = config.in_channels;
  fields.read("out_channels", 1, config.out_channels);
  fields.read("num_layers", 0, config.num_layers);
  fields.read("num_single_layers", 0, config.num_single_layers);
  fields.read("attention_head_dim", 2, config.head_dim);
  fields.read("num_attention_heads", 1, config.num_heads);
  fields.read("joint_attention_dim", 1, config.joint_attention_dim);
  fields.read("pooled_projection_dim", 1, config.pooled_projection_dim);
  fields.read("guidance_embeds", config.guidance_embeds);
  fields.read("axes_dims_rope", config.axes_dims_rope);
  const auto& axes = config.axes_dims_rope;
  FO_CHECK(axes[0] + axes[1] + axes[2] == config.head_dim,
           "flux: %s: axes_dims_rope sums to %d, attention_head_dim is %d; they must agree",
           path.c_str(), axes[0] + axes[1] + axes[2], config.head_dim);
  FO_CHECK(config.total_layers() >= 1, "flux: %s: the model has no layers", path.c_str());
  return config;
}

}  // namespace flashomni
