#pragma once
// Tells AddressSanitizer which parts of our own allocators' memory are in use. Empty without it.
// Any thread.
#if defined(__SANITIZE_ADDRESS__)
#define GW_HAS_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define GW_HAS_ASAN 1
#endif
#endif

#ifdef GW_HAS_ASAN
#include <sanitizer/asan_interface.h>
#define GW_POISON(ptr, size) ASAN_POISON_MEMORY_REGION((ptr), (size))
#define GW_UNPOISON(ptr, size) ASAN_UNPOISON_MEMORY_REGION((ptr), (size))
#else
#define GW_POISON(ptr, size) ((void)(ptr), (void)(size))
#define GW_UNPOISON(ptr, size) ((void)(ptr), (void)(size))
#endif
