# The front door. `make` builds, `make demo` shows what walsh does, `make test` tests it; each first installs the build
# packages that are missing (tools/setup.sh).
.PHONY: all demo test proof install clean format
MODELS ?=
PREFIX ?= /usr/local

all:
	@tools/setup.sh build
	@cmake --preset release -DWALSH_TESTS=OFF --log-level=WARNING >/dev/null
	@cmake --build --preset release

demo: all
	@tools/demo.sh build/walsh

test:
	@tools/setup.sh test
	@cmake --preset release -DWALSH_TESTS=ON --log-level=WARNING >/dev/null
	@cmake --build --preset release
	@ctest --preset release -j 2

# Long checks on larger models: make proof MODELS=DIR, with one directory per model in DIR.
proof:
	@test -n "$(MODELS)" || { echo "usage: make proof MODELS=DIR (a directory of Hugging Face model directories)"; exit 2; }
	@tools/setup.sh test
	@cmake --preset release -DWALSH_TESTS=ON --log-level=WARNING >/dev/null
	@cmake --build --preset release
	@tests/proof/run.sh build "$(MODELS)"

install: all
	@cmake --install build --prefix "$(PREFIX)"

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	@rm -rf build build-clang build-asan build-tsan
