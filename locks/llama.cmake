# llama-cpp-python builds llama.cpp's helpers for command lines whatever it is told: half of the time, and nothing calls them.
# Included before its own lines, where a variable goes before an option of the same name.
set(LLAMA_BUILD_COMMON OFF)
