#!/usr/bin/env bash
# Builds llama-server into DIRECTORY, with llama.cpp from llama-cpp-python's sources and what their
# release build has switched on for this processor. Needs cmake, ninja and a C++ compiler.
set -euo pipefail
tools=$(realpath -m "$1")
version=0.3.36
[ -f "$tools/VERSION" ] && exit 0
mkdir -p "$tools"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --no-deps --no-binary :all: --dest "$scratch" \
  "llama-cpp-python==$version"
tar -xzf "$scratch/llama_cpp_python-$version.tar.gz" -C "$scratch"
source="$scratch/llama_cpp_python-$version/vendor/llama.cpp"
has() { grep -qw "$1" /proc/cpuinfo && echo ON || echo OFF; }
# By name and not by GGML_NATIVE: a virtual machine may hide what its processor's name promises.
# The tiles of AMX stay off: with them a conversion crashed.
cmake -S "$source" -B "$scratch/build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
  -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2="$(has avx2)" \
  -DGGML_FMA="$(has fma)" -DGGML_F16C="$(has f16c)" -DGGML_BMI2="$(has bmi2)" \
  -DGGML_AVX512="$(has avx512f)" -DGGML_AVX512_VNNI="$(has avx512_vnni)" \
  -DGGML_AVX512_BF16="$(has avx512_bf16)" -DGGML_CCACHE=OFF -DLLAMA_OPENSSL=OFF \
  -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_BUILD_TESTS=OFF \
  -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_APP=OFF >/dev/null
# What does not compute (HTTP, JSON, chat templates, pictures) is left at -O1 or -O0: the compiler
# takes a third of the time, and no figure shows it.
awk '/^build / { level = $2 ~ /^tools\/mtmd\// ? "-O0" : $2 ~ /^(common|tools|vendor)\// ? "-O1" : "" }
  /^  FLAGS =/ && level { sub(/-O3/, level) } { print }' \
  "$scratch/build/build.ninja" > "$scratch/build.ninja"
mv "$scratch/build.ninja" "$scratch/build/build.ninja"
nice -n 19 cmake --build "$scratch/build" -j 2 --target llama-server llama-quantize
cp "$scratch/build/bin/llama-server" "$scratch/build/bin/llama-quantize" "$tools/"
echo "llama.cpp of llama-cpp-python $version" > "$tools/VERSION"
