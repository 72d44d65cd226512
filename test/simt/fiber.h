// Stack switching for the simulated CUDA threads: save the callee-saved registers, exchange the stack pointer. 10 to 20
// ns on x86-64 and aarch64. Elsewhere, or with -DSIMT_UCONTEXT, swapcontext does it: a system call, 1 us or more. The
// trap: AddressSanitizer must be told of every switch, or it takes the new stack for an overflow of the old one.
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#define SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SIMT_ASAN 1
#endif
#endif
#if defined(SIMT_ASAN)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(SIMT_UCONTEXT) && !(defined(__ELF__) && (defined(__x86_64__) || defined(__aarch64__)))
#define SIMT_UCONTEXT 1
#endif
#if defined(SIMT_UCONTEXT)
#include <ucontext.h>
#endif

struct Fiber {
#if defined(SIMT_UCONTEXT)
    ucontext_t context;
#else
    void* sp = nullptr;
#endif
    char* stack = nullptr;  // lowest address
    size_t size = 0;
    void* fake_stack = nullptr;  // AddressSanitizer's
};

#if defined(SIMT_UCONTEXT)
#elif defined(__x86_64__)
asm(R"(
.pushsection .text.simt_switch,"axG",@progbits,simt_switch,comdat
.weak simt_switch
.type simt_switch,@function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch,.-simt_switch
.popsection
)");
#else
asm(R"(
.pushsection .text.simt_switch,"axG",@progbits,simt_switch,comdat
.weak simt_switch
.type simt_switch,@function
simt_switch:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size simt_switch,.-simt_switch
.popsection
)");
#endif
#if !defined(SIMT_UCONTEXT)
extern "C" void simt_switch(void** save_sp, void* load_sp);
#endif

// a fiber that begins in entry(), which must never return; stack + size is a multiple of 16
inline void fiber_make(Fiber* fiber, char* stack, size_t size, void (*entry)()) {
    fiber->stack = stack;
    fiber->size = size;
    fiber->fake_stack = nullptr;
#if defined(SIMT_UCONTEXT)
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = stack;
    fiber->context.uc_stack.ss_size = size;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, entry, 0);
#elif defined(__x86_64__)
    // six registers, the address `ret` goes to, and a zero where entry's own return address would be
    uint64_t* sp = reinterpret_cast<uint64_t*>(stack + size) - 8;
    for (int i = 0; i < 8; i++) sp[i] = 0;
    sp[6] = reinterpret_cast<uint64_t>(entry);
    fiber->sp = sp;
#else
    uint64_t* sp = reinterpret_cast<uint64_t*>(stack + size) - 20;
    for (int i = 0; i < 20; i++) sp[i] = 0;
    sp[11] = reinterpret_cast<uint64_t>(entry);  // x30
    fiber->sp = sp;
#endif
}

// the stack the caller is on, to be switched away from and back to
inline void fiber_adopt_current(Fiber* fiber) {
#if defined(SIMT_ASAN)
    pthread_attr_t attributes;
    void* stack = nullptr;
    if (pthread_getattr_np(pthread_self(), &attributes) == 0) {
        pthread_attr_getstack(&attributes, &stack, &fiber->size);
        pthread_attr_destroy(&attributes);
    }
    fiber->stack = static_cast<char*>(stack);
#else
    (void)fiber;
#endif
}

// the first thing entry() does
inline void fiber_entered() {
#if defined(SIMT_ASAN)
    __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

inline void fiber_switch(Fiber* from, Fiber* to) {
#if defined(SIMT_ASAN)
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->size);
#endif
#if defined(SIMT_UCONTEXT)
    swapcontext(&from->context, &to->context);
#else
    simt_switch(&from->sp, to->sp);
#endif
#if defined(SIMT_ASAN)
    __sanitizer_finish_switch_fiber(from->fake_stack, nullptr, nullptr);
#endif
}
