// Makes the page work without a network after the first visit: always the newest files while there is one, the last
// ones that came otherwise. Model and engine are kept by the page itself, which checks them.

const PAGE = "page";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));
self.addEventListener("fetch", (event) => {
  const { request } = event;
  const own = new URL(request.url).origin === self.location.origin;
  if (request.method === "GET" && own && !/\.(wasm|gguf)$/.test(new URL(request.url).pathname)) event.respondWith(answer(request));
});

async function answer(request) {
  const kept = await caches.open(PAGE);
  try {
    const came = await fetch(request);
    if (came.ok) await kept.put(request, came.clone());
    return came;
  } catch (error) {
    const last = await kept.match(request, { ignoreSearch: true });
    if (last) return last;
    throw error;
  }
}
