# SPDX-License-Identifier: BSD-3-Clause
#
# Builds libqcow2.a (the engine, qcow2/), nbdkit-qcow2-plugin.so and qcow2-img,
# installs and tests them.  `make help` lists what there is to make.
#
# Objects of different compilers or flags never meet: each VARIANT has its
# own build directory, and every object depends on a record of the command
# line that made it.

VERSION := 0.1.0

CFLAGS ?= -O2 -g
WITHOUT =
WERROR  = $(if $(wildcard .git),1,0)
V       = 0
Q       = $(if $(filter 0,$(V)),@)

# The default variant is built in build/, its plugin and tool put at the top;
# every other one lives in build/VARIANT alone.
VARIANT =
BUILD   = build$(if $(VARIANT),/$(VARIANT))
NAME    := nbdkit-qcow2-plugin
PLUGIN  := $(if $(filter-out build,$(BUILD)),$(BUILD)/)$(NAME).so
IMG     := $(if $(filter-out build,$(BUILD)),$(BUILD)/)qcow2-img

.DEFAULT_GOAL := all
.DELETE_ON_ERROR:
.SECONDARY:
.SUFFIXES:
.PHONY: FORCE help all plugin tool test-programs preloads bench-programs \
	install uninstall clean deps demo serve bench check run-tests \
	check-sanitize check-thread check-valgrind fuzz soak

# ---- libraries ------------------------------------------------------------

PKG_CONFIG ?= pkg-config
REQUIRED   := nbdkit zlib jansson
OPTIONAL   := $(filter-out $(WITHOUT),libdeflate libisal libzstd)
NEED_NBDKIT := 1.32

has      = $(shell $(PKG_CONFIG) --exists '$(1)' 2>/dev/null && echo '$(1)')
FOUND   := $(strip $(foreach lib,$(OPTIONAL),$(call has,$(lib))))
DEFINES := $(if $(filter libdeflate,$(FOUND)),-DHAVE_LIBDEFLATE) \
	   $(if $(filter libisal,$(FOUND)),-DHAVE_ISAL) \
	   $(if $(filter libzstd,$(FOUND)),-DHAVE_ZSTD)
LIB_CFLAGS := $(shell $(PKG_CONFIG) --cflags $(REQUIRED) $(FOUND) 2>/dev/null)
LIB_LIBS   := $(shell $(PKG_CONFIG) --libs $(REQUIRED) $(FOUND) 2>/dev/null)

# Looked at only when something is compiled.
MISSING = $(strip \
	$(if $(shell command -v $(firstword $(CC)) 2>/dev/null),,$(CC)) \
	$(if $(shell command -v $(PKG_CONFIG) 2>/dev/null),,$(PKG_CONFIG)) \
	$(filter-out $(foreach lib,$(REQUIRED),$(call has,$(lib))),$(REQUIRED)) \
	$(if $(call has,nbdkit >= $(NEED_NBDKIT)),,nbdkit>=$(NEED_NBDKIT)))

# ---- compiling ------------------------------------------------------------

SANITIZE_asan := -fsanitize=address,undefined -fno-sanitize-recover=all
SANITIZE_tsan := -fsanitize=thread
SANITIZE := $(SANITIZE_$(VARIANT))
ifneq ($(SANITIZE),)
SANITIZE += -O1 -fno-omit-frame-pointer
endif

WARNINGS := -Wall -Wextra -Wno-unused-parameter -Wshadow -Wvla -Wstrict-prototypes \
	    -Wmissing-prototypes $(if $(filter 1,$(WERROR)),-Werror)
COMPILE   = $(CC) -std=gnu11 -D_GNU_SOURCE= -D_FILE_OFFSET_BITS=64 \
	    -DPACKAGE_VERSION='"$(VERSION)"' $(DEFINES) \
	    -iquote . -iquote qcow2 $(LIB_CFLAGS) $(CPPFLAGS) \
	    -fPIC -fvisibility=hidden -pthread $(WARNINGS) $(CFLAGS) $(SANITIZE)
LINK      = $(CC) -pthread $(CFLAGS) $(SANITIZE) $(LDFLAGS)

LIB_SRC     := $(wildcard qcow2/*.c)
PLUGIN_SRC  := $(wildcard plugin.c plugin-*.c)
IMG_SRC     := $(wildcard img/*.c)
TEST_SRC    := $(wildcard tests/test-*.c)
PRELOAD_SRC := $(wildcard tests/preload-*.c)
BENCH_SRC   := $(wildcard bench/*.c)
HELP_SRC    := $(filter-out $(TEST_SRC) $(PRELOAD_SRC),$(wildcard tests/*.c))

objects = $(patsubst %.c,$(BUILD)/%.o,$(1))
OBJECTS := $(call objects,$(LIB_SRC) $(PLUGIN_SRC) $(IMG_SRC) $(TEST_SRC) \
	   $(HELP_SRC) $(BENCH_SRC))
TESTS_BUILT := $(patsubst %.c,$(BUILD)/%,$(TEST_SRC))
PRELOADS_BUILT := $(patsubst %.c,$(BUILD)/%.so,$(PRELOAD_SRC))
BENCHES_BUILT := $(patsubst %.c,$(BUILD)/%,$(BENCH_SRC))
MANUALS := $(patsubst %.pod,$(BUILD)/%.1,$(wildcard *.pod))

all: plugin tool $(MANUALS)

plugin: $(PLUGIN)
tool: $(IMG)
test-programs: $(TESTS_BUILT) preloads
preloads: $(PRELOADS_BUILT)
bench-programs: $(BENCHES_BUILT)
plugin tool test-programs preloads bench-programs: ; @:

$(PLUGIN): $(call objects,$(PLUGIN_SRC)) $(BUILD)/libqcow2.a
	@echo "  LINK  $@"
	$(Q)$(LINK) -shared -o $@ $^ $(LIB_LIBS) $(LIBS)

$(IMG): $(call objects,$(IMG_SRC)) $(BUILD)/libqcow2.a
	@echo "  LINK  $@"
	$(Q)$(LINK) -o $@ $^ $(LIB_LIBS) $(LIBS)

$(BUILD)/libqcow2.a: $(call objects,$(LIB_SRC))
$(BUILD)/tests/libtesthelp.a: $(call objects,$(HELP_SRC))
$(BUILD)/libqcow2.a $(BUILD)/tests/libtesthelp.a: $(BUILD)/sources
	@echo "  AR    $@"
	@mkdir -p $(@D)
	$(Q)rm -f $@ && $(AR) crs $@ $(filter %.o,$^)

$(BUILD)/%.o: %.c $(BUILD)/flags
	@echo "  CC    $@"
	@mkdir -p $(@D)
	$(Q)$(COMPILE) -MMD -MP -c -o $@ $<

# nbdkit's header defines plugin_init without declaring it.
$(BUILD)/plugin.o: private WARNINGS += -Wno-missing-prototypes

$(BUILD)/tests/test-%: $(BUILD)/tests/test-%.o $(BUILD)/tests/libtesthelp.a \
		$(BUILD)/libqcow2.a
	@echo "  LINK  $@"
	$(Q)$(LINK) -o $@ $^ $(LIB_LIBS) $(LIBS)

# A measuring program is one file.
$(BUILD)/bench/%: $(BUILD)/bench/%.o $(BUILD)/libqcow2.a
	@echo "  LINK  $@"
	$(Q)$(LINK) -o $@ $^ $(LIB_LIBS) $(LIBS)

# Preloaded into programs that are not ours: never sanitized, all exported.
$(BUILD)/tests/preload-%.so: tests/preload-%.c $(BUILD)/flags
	@echo "  LINK  $@"
	@mkdir -p $(@D)
	$(Q)$(filter-out $(SANITIZE),$(COMPILE)) -fvisibility=default \
	    -MMD -MP -MF $(@:.so=.d) -shared -o $@ $< -ldl

$(BUILD)/%.1: %.pod $(BUILD)/flags
	@echo "  MAN   $@"
	$(Q)pod2man --utf8 --errors=die --section 1 --name $* \
	    --center "nbdkit" --release "$(NAME) $(VERSION)" $< $@

# Rewritten only when what they record has changed.
$(BUILD)/flags:   export RECORD = $(COMPILE) : $(LINK) : $(LIB_LIBS) $(LIBS)
$(BUILD)/sources: export RECORD = $(LIB_SRC) : $(PLUGIN_SRC) : $(IMG_SRC) : $(HELP_SRC)
$(BUILD)/flags $(BUILD)/sources: FORCE
	$(if $(MISSING),@echo "Missing: $(MISSING)." \
	    "\`make deps' installs or lists what is needed." >&2; exit 1)
	@mkdir -p $(@D)
	@echo "$$RECORD" | cmp -s - $@ || echo "$$RECORD" > $@

-include $(OBJECTS:.o=.d) $(patsubst %.c,$(BUILD)/%.d,$(PRELOAD_SRC))

# ---- installing -----------------------------------------------------------

# In nbdkit's own prefix the plugin goes where nbdkit looks for plugins, so
# that `nbdkit qcow2 ...' finds it.  In another prefix it is loaded by path.
NBDKIT_PREFIX := $(shell $(PKG_CONFIG) --variable=prefix nbdkit 2>/dev/null)
prefix = $(NBDKIT_PREFIX)
ifeq ($(prefix),$(NBDKIT_PREFIX))
plugindir := $(shell $(PKG_CONFIG) --variable=plugindir nbdkit 2>/dev/null)
else
plugindir := $(prefix)/lib/nbdkit/plugins
endif
bindir = $(prefix)/bin
mandir = $(prefix)/share/man
completiondir = $(prefix)/share/bash-completion/completions
MANUALS_INSTALLED = $(addprefix $(DESTDIR)$(mandir)/man1/,$(notdir $(MANUALS)))

install: all
	install -d '$(DESTDIR)$(plugindir)' '$(DESTDIR)$(mandir)/man1' \
	    '$(DESTDIR)$(bindir)' '$(DESTDIR)$(completiondir)'
	install -m 0755 $(PLUGIN) '$(DESTDIR)$(plugindir)'
	install -m 0755 $(IMG) '$(DESTDIR)$(bindir)'
	install -m 0644 img/bash-completion '$(DESTDIR)$(completiondir)/qcow2-img'
	$(if $(MANUALS),install -m 0644 $(MANUALS) '$(DESTDIR)$(mandir)/man1')

uninstall:
	rm -f '$(DESTDIR)$(plugindir)/$(NAME).so' $(MANUALS_INSTALLED) \
	    '$(DESTDIR)$(bindir)/qcow2-img' '$(DESTDIR)$(completiondir)/qcow2-img'

clean:
	rm -rf build $(NAME).so qcow2-img

# ---- using ----------------------------------------------------------------

SUBMAKE = $(MAKE) --no-print-directory \
	  $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc 2>/dev/null))

deps:
	@scripts/deps.sh

# IMAGE and PARAMS reach the scripts in the environment.
demo: deps
	@$(SUBMAKE) plugin tool
	@scripts/demo.sh

serve:
	@$(SUBMAKE) plugin
	@scripts/serve.sh

bench: deps
	@$(SUBMAKE) plugin bench-programs
	@bench/run

# ---- testing --------------------------------------------------------------

# TESTS="install test-codec" runs just these, SHORT=1 a part for CI.
TESTS =
SHORT =
# Those that take longest come first, lest others wait for them at the end.
SANITIZE_SHORT := extents img-compare plugin test-write-threads img-map \
	test-cluster-cache test-slice-cache test-fuzz-write test-fuzz \
	test-backing-name test-bad-entry test-bad-header test-chain test-codec \
	test-open-faults test-read-threads test-snapshot test-snapshot-race \
	test-write-queue
# Of these, what has threads.
THREAD_SHORT := $(filter-out img-map test-fuzz test-backing-name \
	test-bad-entry test-bad-header test-codec test-open-faults,$(SANITIZE_SHORT))
VALGRIND_SHORT := big-offsets test-cluster-cache test-chain \
	test-codec test-backing-name test-bad-header test-open-faults \
	test-slice-cache

# What a sanitizer can see: the engine's test programs, and the tests that
# start a server with tests/lib.bash, or run qcow2-img.
C_TESTS      := $(notdir $(TEST_SRC:.c=))
SERVER_TESTS := $(notdir $(basename \
	$(shell grep -ls start_nbdkit tests/*.bats 2>/dev/null)))
TOOL_TESTS   := $(notdir $(basename $(wildcard tests/img*.bats)))
# The one that runs its servers under valgrind, too.
VALGRIND_SERVER_TEST := extents

chosen = $(strip $(or $(TESTS),$(if $(SHORT),$(1)),$(2)))
sanitized_tests = $(call chosen,$(1),$(C_TESTS) $(SERVER_TESTS) $(TOOL_TESTS))
valgrind_tests  = $(call chosen,$(VALGRIND_SHORT),$(C_TESTS) \
	$(VALGRIND_SERVER_TEST))

# What the tests $(2) need built below $(1).
programs = preloads $(patsubst %.c,$(1)/%,$(filter $(TEST_SRC), \
	$(foreach name,$(patsubst tests/%,%,$(basename $(2))), \
	    tests/$(name).c tests/test-$(name).c)))

check: deps
	@$(SUBMAKE) all test-programs
	@$(MAKE) --no-print-directory run-tests

run-tests:
	@BUILD_DIR='$(BUILD)' QCOW2_PLUGIN='$(PLUGIN)' tests/run $(strip $(TESTS))

check-sanitize: deps
	@$(SUBMAKE) VARIANT=asan plugin tool \
	    $(call programs,build/asan,$(call sanitized_tests,$(SANITIZE_SHORT)))
	@BUILD_DIR=build/asan tests/run --asan \
	    $(call sanitized_tests,$(SANITIZE_SHORT))

check-thread: deps
	@$(SUBMAKE) VARIANT=tsan plugin tool \
	    $(call programs,build/tsan,$(call sanitized_tests,$(THREAD_SHORT)))
	@BUILD_DIR=build/tsan tests/run --tsan \
	    $(call sanitized_tests,$(THREAD_SHORT))

check-valgrind: deps
	@$(SUBMAKE) plugin $(call programs,build,$(valgrind_tests))
	@BUILD_DIR=build tests/run --valgrind $(valgrind_tests)

# Mutated images for some minutes; each seed is one that can be run again.
FUZZERS = build/asan/tests/test-fuzz build/asan/tests/test-fuzz-write \
          build/asan/tests/test-fuzz-check
FUZZ_RUNS = 1000000
FUZZ_SEED = $(shell date +%s)

fuzz: deps
	@$(SUBMAKE) VARIANT=asan $(FUZZERS)
	@for test in $(FUZZERS); do \
	    FUZZ_RUNS=$(FUZZ_RUNS) FUZZ_SEED=$(FUZZ_SEED) $$test || exit; \
	done

# The random tests of writing, for hours rather than a minute.
SOAK_SEEDS = 3000
SOAK_SEED  = $(shell date +%s)
SOAK_STATES = 100000

soak: deps
	@$(SUBMAKE) all test-programs
	@TEST_TIMEOUT=$(or $(TEST_TIMEOUT),14400) \
	    WRITE_SEEDS=$(SOAK_SEEDS) WRITE_SEED=$(SOAK_SEED) \
	    RACE_SECONDS=20 RACE_SEED=$(SOAK_SEED) KILLS=200 \
	    POWER_STATES=$(SOAK_STATES) POWER_SEED=$(SOAK_SEED) \
	    GUEST_KINDS=all \
	    $(MAKE) --no-print-directory run-tests \
	    TESTS='$(or $(TESTS),write-model race write power-failure guest)'

help:
	@echo "make                 build $(NAME).so and qcow2-img"
	@echo "make install         [DESTDIR= prefix= plugindir= bindir= mandir=]; uninstall"
	@echo "make deps            install or list what building and testing need"
	@echo "make demo            [IMAGE=disk.qcow2 PARAMS=\"allow-dir=DIR\"]"
	@echo "make serve           IMAGE=disk.qcow2 [PARAMS=...]: serve until Ctrl-C"
	@echo "make check           [TESTS=\"name ...\"]: all tests, or just these"
	@echo "make check-sanitize  [TESTS= SHORT=1] address and undefined behaviour"
	@echo "make check-thread    [TESTS= SHORT=1] data races and lock order"
	@echo "make check-valgrind  [TESTS= SHORT=1] memory errors and leaks"
	@echo "make fuzz            [FUZZ_RUNS= FUZZ_SEED=] mutated images, sanitized"
	@echo "make soak            [SOAK_SEEDS= SOAK_SEED= SOAK_STATES=] random writes for hours"
	@echo "make bench           measure beside qemu-nbd and a raw file"
	@echo "make clean"
	@echo "Variables: CC= CFLAGS= WITHOUT=\"libisal libzstd\" WERROR=0 V=1"
