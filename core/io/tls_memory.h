#pragma once
// Memory for OpenSSL's record buffers. With SSL_MODE_RELEASE_BUFFERS each read borrows 17 KiB for a
// moment; from malloc they would be carved up by what lives as long as its connection, and an idle
// stream would hold twice its own memory. They come from a region of their own instead. Process
// wide, any thread.

// Runs before main, so before anything else uses OpenSSL; that somebody calls it is what links it
// in. Without memory for the region all comes from malloc as ever.
__attribute__((constructor)) void tls_memory_init(void);
