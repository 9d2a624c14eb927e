# The front door. `make` builds, `make demo` shows what walsh does, `make test` tests it; each first installs the build
# packages that are missing (tools/setup.sh).
.PHONY: all demo test proof fuzz install uninstall deb clean format
MODELS ?=
PREFIX ?= /usr/local
DESTDIR ?=
# A build directory that is there stays as it was configured (-DWALSH_CUDA=OFF, another compiler).
configure = cmake $$(test -f build/CMakeCache.txt && echo build || echo --preset release) --log-level=WARNING

all:
	@tools/setup.sh build
	@$(configure) -DWALSH_TESTS=OFF >/dev/null
	@cmake --build build -j "$$(nproc)"

demo: all
	@tools/demo.sh build/walsh

test:
	@tools/setup.sh test
	@$(configure) -DWALSH_TESTS=ON >/dev/null
	@cmake --build build -j "$$(nproc)"
	@ctest --test-dir build --output-on-failure -j 2

# Long checks on larger models: make proof MODELS=DIR, with one directory per model in DIR.
proof:
	@test -n "$(MODELS)" || { echo "usage: make proof MODELS=DIR (a directory of Hugging Face model directories)"; exit 2; }
	@tools/setup.sh test
	@$(configure) -DWALSH_TESTS=ON >/dev/null
	@cmake --build build -j "$$(nproc)"
	@tests/proof/run.sh build "$(MODELS)"

# Every fuzz target for SECONDS: needs clang.
SECONDS ?= 60
fuzz:
	@tools/setup.sh ci
	@cmake --preset fuzz --log-level=WARNING >/dev/null
	@cmake --build --preset fuzz
	@tests/proof/fuzz.sh build-fuzz/tests $(SECONDS)

# Program, library, headers, manual pages, completion, texts and the embedded model, below $(DESTDIR)$(PREFIX).
install: all
	@DESTDIR="$(DESTDIR)" cmake --install build --prefix "$(PREFIX)" >build/install.log
	@echo "walsh is installed below $(DESTDIR)$(PREFIX)"

uninstall:
	@DESTDIR="$(DESTDIR)" cmake -DBUILD=build -DPREFIX="$(PREFIX)" -P cmake/uninstall.cmake

# build/packages/*.deb of the same files, and what lintian says of them.
deb: all
	@tools/setup.sh deb
	@rm -rf build/packages
	@tools/deb.sh build build/packages
	@lintian --fail-on error,warning build/packages/*.deb

format:
	@git ls-files '*.c' '*.h' | xargs clang-format -i

clean:
	@rm -rf build build-clang build-asan build-tsan build-fuzz build-aarch64
