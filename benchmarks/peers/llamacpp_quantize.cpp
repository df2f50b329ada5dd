// llama.cpp's own quantizer, as llama-quantize calls it, without the rest of that tool.
//
// usage: llamacpp_quantize FULL.gguf OUT.gguf FTYPE IMPORTANCE.gguf THREADS
//
// FTYPE is a number of `enum llama_ftype`. IMPORTANCE.gguf holds, for each weight that has one and
// under that weight's name, an f32 vector: the mean square of each of its inputs.

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "ggml.h"
#include "gguf.h"
#include "llama.h"

int main(int count, char ** words) {
    if (count != 6) {
        std::fprintf(stderr, "usage: %s FULL.gguf OUT.gguf FTYPE IMPORTANCE.gguf THREADS\n", words[0]);
        return 2;
    }
    ggml_context * tensors = nullptr;
    gguf_context * file = gguf_init_from_file(words[4], {/*.no_alloc =*/ false, /*.ctx =*/ &tensors});
    if (file == nullptr) {
        std::fprintf(stderr, "cannot read %s\n", words[4]);
        return 1;
    }
    std::vector<llama_model_imatrix_data> importance;
    for (int64_t index = 0; index < gguf_get_n_tensors(file); ++index) {
        const char * name = gguf_get_tensor_name(file, index);
        const ggml_tensor * tensor = ggml_get_tensor(tensors, name);
        const float * values = static_cast<const float *>(tensor->data);
        importance.push_back({name, values, static_cast<size_t>(ggml_nelements(tensor))});
    }
    importance.push_back({nullptr, nullptr, 0});  // marks the end

    llama_backend_init();
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype = static_cast<llama_ftype>(std::atoi(words[3]));
    params.imatrix = importance.data();
    params.nthread = std::atoi(words[5]);
    const uint32_t failed = llama_model_quantize(words[1], words[2], &params);
    llama_backend_free();
    gguf_free(file);
    ggml_free(tensors);
    return failed == 0 ? 0 : 1;
}
