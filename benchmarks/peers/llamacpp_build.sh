#!/usr/bin/env bash
# Builds llamacpp_quantize into DIRECTORY, with llama.cpp from llama-cpp-python's sources.
# Needs cmake, ninja and a C++ compiler.
set -euo pipefail
tools=$(realpath -m "$1")
here=$(cd "$(dirname "$0")" && pwd)
version=0.3.36
[ -f "$tools/VERSION" ] && exit 0
mkdir -p "$tools"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$scratch" \
  "llama-cpp-python==$version"
tar -xzf "$scratch/llama_cpp_python-$version.tar.gz" -C "$scratch"
source="$scratch/llama_cpp_python-$version/vendor/llama.cpp"
# One instruction set everywhere, so that a result does not depend on the machine.
cmake -S "$source" -B "$scratch/build" -G Ninja \
  -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS_RELEASE="-O1 -DNDEBUG" -DBUILD_SHARED_LIBS=OFF \
  -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON \
  -DGGML_LLAMAFILE=OFF -DGGML_CPU_REPACK=OFF -DGGML_CCACHE=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF >/dev/null
nice -n 19 cmake --build "$scratch/build" -j 2 --target llama
libraries=$(find "$scratch/build" -name 'libllama.a' -o -name 'libggml.a' -o -name 'libggml-cpu.a' \
  -o -name 'libggml-base.a')
# shellcheck disable=SC2086 # a list of paths without spaces
c++ -O1 -std=c++17 -I "$source/include" -I "$source/ggml/include" "$here/llamacpp_quantize.cpp" \
  -Wl,--start-group $libraries -Wl,--end-group -fopenmp -lpthread -ldl \
  -o "$tools/llamacpp_quantize"
echo "llama.cpp of llama-cpp-python $version" > "$tools/VERSION"
