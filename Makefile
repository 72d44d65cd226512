# make            build ./train_qrl: nvcc when there are a CUDA toolkit and a driver (or CUDA=1), else g++ or clang++
# make run        install what is missing, build, run the embedded example
# make test       install what is missing, build and run every test; the last line counts them
# make test-long  the tests that take minutes: kills at every system call of a save, and at 40 random moments
# make bench      the machine's ceilings, and how near to them operators and whole steps come: minutes
# make simt       the CUDA kernels executed on the CPU against their loops (part of make test)
# make cuda       compile with nvcc for ARCHS, no GPU needed
# make ptxas      registers, shared and local memory and occupancy of each kernel for ARCHS; fails on local memory that is not listed
# make train_qrl_simt   the program whose --device cuda runs the CUDA kernels on the CPU, for debuggers and sanitizers
# make races      the tests of the kernels with every access of shared memory tracked, which takes minutes
# make sanitize   the tests, and the program that they run, under AddressSanitizer, UBSan and LeakSanitizer; SANITIZER=thread
#                 (with CXX=clang++) under ThreadSanitizer, SANITIZER=memory under valgrind
# make fuzz       the readers of untrusted input on mutated input, under both; FUZZ="gguf config" FUZZ_RUNS=1000000 FUZZ_SECONDS=60
#
# PRECISION=BF16|FP32   working weights and activations: bf16 by default with nvcc and where this CPU is faster with it (AMX,
#                       or AVX512_BF16 of AMD), else fp32
# MARCH=x86-64-v3|native|...  CPU to compile for; products and attention take what the CPU they run on has, whatever this says
# CUDA=0|1              never or always nvcc                     ARCHS="80 90"             GPUs for nvcc (default: native)
# WERROR=1              warnings of nvcc builds are errors, as CI and make test have it

BUILD ?= build
CUDA_HOME ?= /usr/local/cuda

# ---- which compiler --------------------------------------------------------------------------------------------------

ifeq ($(origin CXX),default)
  CXX := $(shell command -v g++ >/dev/null 2>&1 && echo g++ || { command -v clang++ >/dev/null 2>&1 && echo clang++ || echo g++; })
endif
# x86-64-v3 has AVX2 and FMA, as machines since 2015 do, so that a binary can be moved. Measured against native on a CPU with
# AVX-512: equal, for compilers prefer vectors of 256 bits there, and the loops that gain from more choose at run time.
MARCH ?= $(shell grep -qw avx2 /proc/cpuinfo 2>/dev/null && grep -qw fma /proc/cpuinfo && \
           $(CXX) -march=x86-64-v3 -x c -c /dev/null -o /dev/null 2>/dev/null && echo x86-64-v3 || echo native)
NVCC ?= $(shell command -v nvcc 2>/dev/null || { test -x $(CUDA_HOME)/bin/nvcc && echo $(CUDA_HOME)/bin/nvcc; })
DRIVER := $(shell { nvidia-smi -L >/dev/null 2>&1 || test -e /dev/nvidia0; } && echo yes)

ifeq ($(CUDA),1)
  ifeq ($(NVCC),)
    $(error CUDA=1, but there is no nvcc: install the CUDA toolkit or set NVCC or CUDA_HOME)
  endif
  USE_NVCC := yes
  WHY := CUDA=1
else ifeq ($(CUDA),0)
  WHY := CUDA=0
else ifeq ($(NVCC),)
  WHY := no nvcc found
else ifeq ($(DRIVER),)
  WHY := nvcc found, but no NVIDIA driver (CUDA=1 compiles with nvcc all the same)
else
  USE_NVCC := yes
  WHY := CUDA toolkit and driver found
endif

PRECISION_ASKED := $(PRECISION)
# bf16 halves the memory; on a CPU it is also faster where there is AMX, or vdpbf16ps as AMD has it: twice the rate of fp32,
# where Intel's without AMX has half
FAST_BF16 := $(shell grep -qw amx_bf16 /proc/cpuinfo 2>/dev/null && echo AMX || \
               { grep -qw avx512_bf16 /proc/cpuinfo 2>/dev/null && grep -q AuthenticAMD /proc/cpuinfo && echo AVX512_BF16; })
PRECISION ?= $(if $(USE_NVCC)$(FAST_BF16),BF16,FP32)

# ---- flags -----------------------------------------------------------------------------------------------------------

# no -ffast-math anywhere: NaN and the order of sums must mean what the source says
OPTIMIZE ?= -O3
MARCH_FLAG := $(if $(MARCH),-march=$(MARCH))
OPENMP := $(shell echo 'int main(){}' | $(CXX) -fopenmp -x c++ - -o /dev/null 2>/dev/null && echo -fopenmp)
ifeq ($(OPENMP),)
  OPENMP_NOTE := echo "warning: $(CXX) has no OpenMP; the program will use one core";
endif
ifeq ($(PRECISION),FP32)
  DEFINES := -DPRECISION_FP32
else ifneq ($(PRECISION),BF16)
  $(error PRECISION=$(PRECISION): BF16 or FP32)
endif
CXXFLAGS ?= $(OPTIMIZE) $(MARCH_FLAG) -Wall -Wextra -Wshadow
# clang reports each loop it leaves scalar although `omp simd` allows otherwise (the max reductions)
QUIET := $(if $(findstring clang,$(CXX)),-Wno-pass-failed)
# g++ collects its garbage only beyond 1 GiB: an eighth less time to compile
GARBAGE := $(if $(findstring clang,$(CXX)),,--param ggc-min-expand=100 --param ggc-min-heapsize=1048576)
# a switch over an enum names every enumerator, or it does not compile: no format, storage or rule is forgotten
STRICT := -Werror=switch
# nobody reads the errno of sqrtf, and loops with one do not vectorize as long as it has to be set: AdamW takes 6 times as
# long. No result changes
ERRNO := -fno-math-errno
BASE_FLAGS := -std=c++17 $(STRICT) $(ERRNO) $(OPENMP) $(QUIET) $(GARBAGE)
# dlopen of rewards and threads lie in libraries of their own with glibc before 2.34
LIBS := -lutf8proc -ldl -lpthread
# NCCL is for several ranks; a build without it takes one
NCCL := $(wildcard $(CUDA_HOME)/include/nccl.h /usr/include/nccl.h /usr/local/include/nccl.h)
CUDA_LIBS := -lcublasLt $(if $(NCCL),-L$(CUDA_HOME)/lib -lnccl)
ARCHS ?= native
# with PTX of the newest, which drivers compile for GPUs that are newer still (what ends in a or f is for one GPU alone)
NEWEST := $(lastword $(shell printf '%s\n' $(filter-out %a %f native,$(ARCHS)) | sort -n))
NVCC_ARCH := $(if $(filter native,$(ARCHS)),$(if $(DRIVER),-arch=native,-arch=sm_80),$(foreach a,$(ARCHS),-gencode arch=compute_$(a),code=sm_$(a)) \
               $(foreach a,$(NEWEST),-gencode arch=compute_$(a),code=compute_$(a)))
# of the host's code; the device's is optimized in any case
NVCC_OPTIMIZE ?= -O3
NVCCFLAGS := -std=c++17 $(NVCC_OPTIMIZE) $(NVCC_ARCH) $(if $(WERROR),-Werror all-warnings) \
             -Xcompiler "$(MARCH_FLAG) $(OPENMP) $(STRICT) $(ERRNO) -Wall $(if $(WERROR),-Werror)"

SOURCES := $(filter-out test/%,$(wildcard *.cu *.cuh *.h */*.cuh */*.h */*/*.cuh */*/*.h))

all: train_qrl

# the flags of the last build: a change of PRECISION, MARCH or compiler rebuilds
STAMP := $(BUILD)/flags.$(shell echo '$(USE_NVCC) $(NVCC_ARCH) $(CXX) $(CXXFLAGS) $(DEFINES) $(OPENMP)' | cksum | cut -d' ' -f1)
$(STAMP):
	@mkdir -p $(BUILD) && rm -f $(BUILD)/flags.* && touch $@

train_qrl: $(SOURCES) $(STAMP) | check-headers
ifeq ($(USE_NVCC),yes)
	@echo "compiling with $(NVCC) ($(WHY)), $(PRECISION)"
	$(NVCC) $(NVCCFLAGS) $(DEFINES) train_qrl.cu -o $@ $(LIBS) $(CUDA_LIBS)
else
	@echo "compiling with $(CXX) for the CPU ($(WHY)), $(PRECISION)$(if $(FAST_BF16), (this CPU has $(FAST_BF16)))"
	@$(OPENMP_NOTE) true
	$(CXX) $(BASE_FLAGS) $(CXXFLAGS) $(DEFINES) -x c++ train_qrl.cu -o $@ $(LIBS)
endif

# what nvcc builds are unless another precision is asked for, whatever compiler this machine takes for train_qrl
cuda ptxas: DEFINES := $(if $(filter FP32,$(PRECISION_ASKED)),-DPRECISION_FP32)
cuda: $(SOURCES) | check-headers
	@test -n "$(NVCC)" || { echo "make cuda: no nvcc; install the CUDA toolkit or set NVCC or CUDA_HOME" >&2; exit 1; }
	@mkdir -p $(BUILD)
	$(NVCC) --threads 0 $(NVCCFLAGS) $(DEFINES) train_qrl.cu -o $(BUILD)/train_qrl_cuda $(LIBS) $(CUDA_LIBS)

ptxas: $(SOURCES) | check-headers
	@NVCC="$(NVCC)" NVCCFLAGS='-std=c++17 -O3 $(DEFINES)' test/ptxas $(if $(filter native,$(ARCHS)),80 90,$(ARCHS))

# the fibers take the time, not the arithmetic between them, and -O3 takes three times as long to compile
train_qrl_simt: OPTIMIZE := $(if $(filter -O3,$(OPTIMIZE)),-Og,$(OPTIMIZE))
train_qrl_simt: $(SOURCES) $(wildcard test/simt/*) $(STAMP) | check-headers
	$(CXX) $(BASE_FLAGS) $(CXXFLAGS) $(SIMT_FLAGS) $(if $(filter FP32,$(PRECISION_ASKED)),-DPRECISION_FP32) -x c++ train_qrl.cu -o $@ $(LIBS)

run: deps
	@$(MAKE) --no-print-directory train_qrl
	./train_qrl

# ---- dependencies ----------------------------------------------------------------------------------------------------

HEADERS := nlohmann/json.hpp utf8proc.h
PACKAGES := g++ nlohmann-json3-dev libutf8proc-dev
# \043 is the hash sign, which make versions disagree about quoting
have_header = $(shell printf '\043include <$(1)>\n' | $(CXX) -x c++ -E - >/dev/null 2>&1 && echo yes)
missing_headers = $(strip $(foreach h,$(1),$(if $(call have_header,$(h)),,$(h))))

check-headers:
	@missing="$(call missing_headers,$(HEADERS))"; test -z "$$missing" || { \
	  echo "missing: $$missing; 'make deps' installs them with apt, elsewhere install: C++ compiler, nlohmann/json 3.x, utf8proc 2.x" >&2; exit 1; }

deps:
	@$(MAKE) --no-print-directory install-missing WANT="$(HEADERS)" WANT_PACKAGES="$(PACKAGES)"
deps-test:
	@$(MAKE) --no-print-directory install-missing WANT="$(HEADERS) gtest/gtest.h" WANT_PACKAGES="$(PACKAGES) libgtest-dev"

install-missing:
	@missing="$(call missing_headers,$(WANT))"; test -z "$$missing" && exit 0; \
	if ! command -v apt-get >/dev/null 2>&1; then \
	  echo "missing: $$missing; there is no apt-get here, install: $(WANT_PACKAGES) (Debian's names)" >&2; exit 1; fi; \
	echo "missing: $$missing; installing $(WANT_PACKAGES)"; \
	sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	$$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y $(WANT_PACKAGES) >/dev/null

# ---- tests -----------------------------------------------------------------------------------------------------------

# build/test_NAME from test/test_NAME.cpp (bf16); what follows an @ is a variant of the same source. The tests of the
# CUDA kernels run the CPU loops too, so they have no variant without kernels.
KERNEL_TESTS := test_rmsnorm test_pointwise test_attention test_kv_cache test_linear test_packed test_lora test_lm_head \
                test_quantizers test_learned_scales test_quantizer_texts test_grid_statistics test_hadamard test_kronecker test_range_backward \
                test_optimizers test_distill_kernels test_methods test_policy_loss

# the tests of test/simt itself
UNITY_simulation := test_simt test_simt_ptx test_simt_runtime test_cublaslt test_nccl
SIMT_TESTS := $(UNITY_simulation) test_simt_race
TESTS := $(patsubst test/%.cpp,%,$(wildcard test/test_*.cpp))

# Tests of the model include most of the program, which takes longer to compile than to run: test/unity makes one binary
# of many. Each can still be built alone: make build/test_golden@simt.
UNITY_cpu := test_kernels test_attention_cpu test_golden test_grpo test_grpo_options test_sampling_options test_samples test_train test_model_linear test_ptq test_blockwise test_flatquant test_masters test_transforms test_basis test_efqat test_gguf test_containers test_formats test_sampler test_drift
UNITY_fp32 := test_kernels test_attention_cpu test_golden test_grpo test_train test_blockwise test_flatquant
UNITY_simt := $(KERNEL_TESTS) test_golden test_grpo test_sampling_options test_samples test_train test_basis test_flatquant test_efqat test_sampler test_drift
UNITY_simt-fp32 := $(KERNEL_TESTS) test_golden test_transforms
# small ones, whose headers of others take the time
UNITY_host := test_json test_mismatch test_options test_plot test_progress test_report test_rewards test_grader test_run_dir test_runtime test_statistics test_study test_study_claims test_tfevents test_data_sets test_dataset test_training_rows test_tokenizer test_user_rewards test_watch
# small ones that run the program: each binary trains a model first, which takes longer than most of them
UNITY_cli := $(addprefix test_cli_,compare drift eval grade grpo progress report rewards sampler study watch)
UNITY_program := test_cli $(addprefix test_cli_,bad_use data training)
UNITIES := $(addprefix $(BUILD)/test_unity@,simt simt-fp32 cpu fp32 host cli program simulation)
# those that run longest come first, or one of them is left for the end with a core that idles
TEST_BINARIES := $(filter %@simt %@simt-fp32,$(UNITIES)) $(addprefix $(BUILD)/,test_devices test_cli_resume test_gemm@portable) \
                 $(filter-out %@simt %@simt-fp32,$(UNITIES)) $(addprefix $(BUILD)/,test_attention_cpu@portable test_packed@portable \
                   $(filter-out $(KERNEL_TESTS) $(UNITY_cpu) $(UNITY_host) $(UNITY_cli) $(UNITY_program) $(UNITY_simulation) test_devices test_cli_resume,$(TESTS)) \
                   $(if $(USE_NVCC),$(addsuffix @cuda,$(KERNEL_TESTS))))
COVERAGE := $(filter %@simt %@simt-fp32,$(UNITIES))
SIMT_BINARIES := $(addprefix $(BUILD)/,$(filter $(SIMT_TESTS),$(TESTS))) $(COVERAGE)
TEST_OPTIMIZE ?= -O1
# those that read files or run the program have no loops to speak of, and the models of others are small: compiled a
# quarter to a third faster; what runs for less than a second, not optimized
$(addprefix $(BUILD)/,test_unity@host test_unity@cli test_unity@program test_unity@simulation test_unity@cpu test_unity@fp32 $(UNITY_host) $(UNITY_cli) $(UNITY_program) $(addprefix test_,cli_adapters cli_distill cli_methods cli_quantize cli_resume devices)): \
  TEST_OPTIMIZE := -Og
$(BUILD)/bench_kernels@simt $(BUILD)/test_fuzz_corpus: TEST_OPTIMIZE := -O0
TEST_FLAGS = $(BASE_FLAGS) $(TEST_OPTIMIZE) $(MARCH_FLAG) -Wall -Wextra
TEST_LIBS := -lgtest -lgtest_main -lutf8proc -lpthread -ldl

SIMT_FLAGS := -DTRAIN_QRL_SIMT -I test/simt
$(addprefix $(BUILD)/,$(SIMT_TESTS) test_unity@simulation): MORE := $(SIMT_FLAGS)
$(BUILD)/test_nvidia_dtypes: MORE := -isystem $(CUDA_HOME)/include
$(BUILD)/test_fuzz_corpus: $(wildcard test/fuzz/*)
$(BUILD)/test_devices: MORE := $(if $(USE_NVCC),-DPROGRAM_HAS_CUDA)
$(BUILD)/%@fp32: MORE := -DPRECISION_FP32
$(BUILD)/%@portable: MORE := -march=x86-64
$(BUILD)/%@simt: MORE := $(SIMT_FLAGS)
$(BUILD)/%@simt-fp32: MORE := $(SIMT_FLAGS) -DPRECISION_FP32

TEST_SOURCES := $(SOURCES) $(wildcard test/*.h test/simt/*)
.SECONDEXPANSION:
$(BUILD)/test_%: test/test_$$(firstword $$(subst @, ,%)).cpp $(TEST_SOURCES)
	@mkdir -p $(BUILD)
	@echo "compiling $@"
	@$(CXX) $(TEST_FLAGS) $(MORE) $< -o $@ $(TEST_LIBS)

# with races of shared memory tracked (test/simt/race.cpp): of the simulation itself, and of kernels
define compile_with_races
	@mkdir -p $(BUILD)
	@echo "compiling $@"
	@$(CXX) $(TEST_FLAGS) $(SIMT_FLAGS) -fsanitize=thread -Wno-tsan -c $< -o $@.o
	@$(CXX) $(TEST_FLAGS) $(SIMT_FLAGS) -c test/simt/race.cpp -o $@.race.o
	@$(CXX) $(OPENMP) $@.o $@.race.o -o $@ $(TEST_LIBS)
endef
$(BUILD)/test_simt_race: test/test_simt_race.cpp $(TEST_SOURCES)
	$(compile_with_races)
$(BUILD)/test_%@races: test/test_%.cpp $(TEST_SOURCES)
	$(compile_with_races)

unity_tests = $(addprefix test/,$(addsuffix .cpp,$(UNITY_$(1))))
$(BUILD)/test_unity@%: $$(call unity_tests,%) test/unity $(TEST_SOURCES)
	@mkdir -p $(BUILD)
	@echo "compiling $@: $(UNITY_$*)"
	@test/unity $(call unity_tests,$*) >$@.cpp
	@$(CXX) $(TEST_FLAGS) $(MORE) $@.cpp -o $@ $(TEST_LIBS)

# where there is a GPU, the same tests on it
$(BUILD)/test_%@cuda: test/test_%.cpp $(TEST_SOURCES)
	@mkdir -p $(BUILD)
	@echo "compiling $@"
	@$(NVCC) -std=c++17 -O1 $(NVCC_ARCH) -x cu $< -o $@ -Xcompiler "$(MARCH_FLAG) $(OPENMP) $(STRICT) $(ERRNO)" $(TEST_LIBS) $(CUDA_LIBS)

tests: $(TEST_BINARIES)

test: deps-test
	@$(MAKE) --no-print-directory -j2 WERROR=1 train_qrl train_qrl_simt tests $(BUILD)/bench_kernels@simt
	@$(BUILD)/bench_kernels@simt --tiny >$(BUILD)/bench_kernels.log || { cat $(BUILD)/bench_kernels.log; exit 1; }
	@COVERAGE="$(COVERAGE)" CXX="$(CXX)" CXX_FLAGS="$(BASE_FLAGS) $(MARCH_FLAG)" \
	  test/run $(TEST_BINARIES) test/format_recipe test/rooms test/builds test/download -- test/coverage

test-long: deps-test
	@$(MAKE) --no-print-directory -j2 train_qrl $(BUILD)/test_cli_resume
	@TRAIN_QRL_LONG=1 test/run $(BUILD)/test_cli_resume

simt: deps-test
	@$(MAKE) --no-print-directory -j2 $(SIMT_BINARIES)
	@COVERAGE="$(COVERAGE)" test/run $(SIMT_BINARIES) -- test/coverage

# one test left out: its CPU loops, whose sums are not vectorized here, are less exact than it allows
races: deps-test
	@$(MAKE) --no-print-directory $(patsubst %,$(BUILD)/%@races,$(KERNEL_TESTS))
	@GTEST_FILTER=-LmHead.AgreesWithFloat64AndAllThreadOrdersGiveTheSameBits \
	  test/run $(patsubst %,$(BUILD)/%@races,$(KERNEL_TESTS))

# SANITIZER=address: AddressSanitizer, UBSan and LeakSanitizer, over the whole suite; the program that the tests of the
# command line run is instrumented, too. thread: ThreadSanitizer, with clang++, whose OpenMP tells it of barriers (Archer).
# memory: valgrind, for reads of what nobody has written (most of an hour). The simulated GPU's fibers are known to AddressSanitizer alone.
SANITIZER ?= address
SANITIZE_DIR := $(BUILD)/$(SANITIZER)
SANITIZE_CPU := test_unity@cpu test_gemm test_json test_tokenizer test_rewards test_grader test_dataset test_options test_run_dir
SANITIZE_CLI := $(filter test_cli%,$(TESTS))
ifeq ($(SANITIZER),address)
  SANITIZE_FLAGS := -fsanitize=address,undefined -fno-sanitize-recover=all
  SANITIZE := $(filter-out test_nvidia_dtypes test_nccl test_simt_race,$(filter-out $(KERNEL_TESTS) $(UNITY_cpu),$(TESTS))) test_unity@cpu test_unity@simt
else ifeq ($(SANITIZER),thread)
  ifeq ($(findstring clang,$(CXX)),)
    $(error SANITIZER=thread: give CXX=clang++; ThreadSanitizer knows nothing of the barriers of g++'s OpenMP)
  endif
  # the waits within the OpenMP library are not instrumented
  SANITIZE_FLAGS := -fsanitize=thread
  SANITIZE_RUN := TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66" OMP_NUM_THREADS=4
  SANITIZE := $(SANITIZE_CPU) $(SANITIZE_CLI)
else ifeq ($(SANITIZER),memory)
  SANITIZE_MARCH := -march=x86-64-v3  # valgrind knows no AVX-512
  SANITIZE_RUN := LAUNCHER="valgrind -q --error-exitcode=66 --leak-check=full --show-leak-kinds=definite --errors-for-leak-kinds=definite" OMP_NUM_THREADS=2
  SANITIZE := $(SANITIZE_CPU)
else
  $(error SANITIZER=$(SANITIZER): address, thread or memory)
endif
SANITIZE_ALL := $(strip -std=c++17 $(STRICT) $(ERRNO) $(OPENMP) $(QUIET) -O1 -g $(or $(SANITIZE_MARCH),$(MARCH_FLAG)) $(SANITIZE_FLAGS))
sanitize: deps-test
	@test $(SANITIZER) != memory || command -v valgrind >/dev/null || { echo "SANITIZER=memory: install valgrind" >&2; exit 1; }
	@mkdir -p $(SANITIZE_DIR)
	@$(MAKE) --no-print-directory -j2 BUILD=$(SANITIZE_DIR) TEST_FLAGS="$(SANITIZE_ALL)" \
	  $(addprefix $(SANITIZE_DIR)/,$(if $(filter $(SANITIZE_CLI),$(SANITIZE)),train_qrl) $(SANITIZE))
	@TEST_SLOWNESS=30 TRAIN_QRL=$(SANITIZE_DIR)/train_qrl $(SANITIZE_RUN) test/run $(addprefix $(SANITIZE_DIR)/,$(SANITIZE))

# the program for it
$(BUILD)/train_qrl: $(SOURCES)
	@mkdir -p $(BUILD)
	@echo "compiling $@"
	@$(CXX) $(TEST_FLAGS) -DPRECISION_FP32 -x c++ train_qrl.cu -o $@ $(LIBS)

# libFuzzer comes with clang; without it the targets replay their corpus. FUZZ_RUNS, FUZZ_SECONDS: of a target, 0: no limit
FUZZ ?= $(patsubst test/fuzz/fuzz_%.cpp,%,$(wildcard test/fuzz/fuzz_*.cpp))
FUZZ_RUNS ?= 100000
FUZZ_SECONDS ?= 0
FUZZ_CXX ?= clang++
FUZZ_SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
FUZZER = $(shell printf '\043include <stdint.h>\n\043include <stddef.h>\nextern "C" int LLVMFuzzerTestOneInput(const uint8_t*, size_t) { return 0; }' | \
  $(FUZZ_CXX) -fsanitize=fuzzer -x c++ - -o /dev/null 2>/dev/null && echo yes)
FUZZ_BUILD = $(if $(FUZZER),$(FUZZ_CXX) -fsanitize=fuzzer,$(CXX) test/fuzz/driver.cpp)
fuzz: deps
	@test -n "$(FUZZER)" || echo "no libFuzzer ($(FUZZ_CXX) -fsanitize=fuzzer): the corpus alone"
	@$(MAKE) --no-print-directory -s FUZZ_BUILD="$(FUZZ_BUILD)" $(patsubst %,$(BUILD)/fuzz/fuzz_%,$(FUZZ))
	@test/fuzz/run $(BUILD)/fuzz $(FUZZ_RUNS) $(FUZZ_SECONDS) $(FUZZ)

$(BUILD)/fuzz/fuzz_%: test/fuzz/fuzz_%.cpp test/fuzz/fuzz.h test/fuzz/driver.cpp $(SOURCES)
	@mkdir -p $(BUILD)/fuzz
	@echo "compiling $@"
	@$(FUZZ_BUILD) -std=c++17 -O1 -g $(FUZZ_SANITIZE) -DPRECISION_FP32 -Wno-unknown-pragmas $(if $(FUZZER),-Wno-pass-failed) $< -o $@ $(LIBS)

# BENCH="--bench_model 0.5b --part sft": flags of ./train_qrl bench. The tokenizer needs a vocabulary and a text:
# BENCH_TOKENIZER=folder BENCH_TEXT=file
BENCH_TOKENIZER ?= ../shared/tokenizer/qwen3
BENCH_TEXT ?= ../shared/data/gsm8k/train.jsonl
bench: deps
	@$(MAKE) --no-print-directory $(BUILD)/bench_tokenizer train_qrl $(BENCH_KERNELS)
	@$(BENCH_KERNELS)
	@./train_qrl bench $(BENCH)
	@if test -e $(BENCH_TOKENIZER) && test -e $(BENCH_TEXT); then $(BUILD)/bench_tokenizer $(BENCH_TOKENIZER) $(BENCH_TEXT); \
	 else echo "tokenizer: not measured, set BENCH_TOKENIZER and BENCH_TEXT"; fi

# the CUDA operators, where there is a GPU
BENCH_KERNELS := $(if $(USE_NVCC),$(BUILD)/bench_kernels)
$(BUILD)/bench_kernels: bench/bench_kernels.cpp $(SOURCES)
	@mkdir -p $(BUILD)
	$(NVCC) $(NVCCFLAGS) $(DEFINES) -x cu $< -o $@ $(LIBS) $(CUDA_LIBS)

# every line of it once, simulated, in make test
$(BUILD)/bench_kernels@simt: bench/bench_kernels.cpp $(TEST_SOURCES)
	@mkdir -p $(BUILD)
	@$(CXX) $(TEST_FLAGS) $(SIMT_FLAGS) $< -o $@

$(BUILD)/bench_%: bench/bench_%.cpp $(SOURCES)
	@mkdir -p $(BUILD)
	$(CXX) $(BASE_FLAGS) $(CXXFLAGS) $(DEFINES) $< -o $@ $(LIBS)

clean:
	rm -rf $(BUILD) train_qrl train_qrl_simt

.PHONY: all run cuda ptxas deps deps-test install-missing check-headers tests test test-long simt races sanitize fuzz bench clean
