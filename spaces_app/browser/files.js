// Large files: fetched with a progress bar, checked against the manifest, and kept for the next visit.

import { megabytes } from "./dom.js";

const KEPT = "files";

/** What a reader can do something about; its message is for them. */
export class Refused extends Error {}

/**
 * Return a file of the manifest as a Blob, from what was kept of an earlier visit or from the Space.
 *
 * `file` has `file`, `bytes` and `sha256`; `progress(bytes)` is told how many more have come. What does not have the
 * published hash is not used, wherever it came from.
 */
export async function open(file, type, progress) {
  const url = new URL(file.file, document.baseURI).href;
  const key = `${url}?${file.sha256}`;
  const store = await caches.open(KEPT).catch(() => null); // a private window may have none
  const kept = await store?.match(key);
  if (kept) {
    const bytes = new Uint8Array(await kept.arrayBuffer());
    if ((await sha256(bytes)) === file.sha256) {
      progress(bytes.length);
      return new Blob([bytes], { type });
    }
    await store.delete(key);
  }
  const bytes = await fetchAll(url, file, progress);
  if ((await sha256(bytes)) !== file.sha256) {
    throw new Refused(
      `${file.file} is not the file that was published (its SHA-256 is another one), so it is not used. Reload the ` +
        "page; if this stays, its owner must publish the Space again.",
    );
  }
  await forgetOlder(store, url);
  await store?.put(key, new Response(bytes)).catch(() => {}); // no room: it is fetched again next time
  return new Blob([bytes], { type });
}

async function fetchAll(url, file, progress) {
  let answer;
  try {
    // A browser may hold what came in half and be told that it is still valid; what is whole, this page keeps itself.
    answer = await fetch(url, { cache: "no-store" });
  } catch {
    throw new Refused(`${file.file} could not be fetched; look to your connection and reload the page.`);
  }
  if (!answer.ok) throw new Refused(`${file.file} could not be fetched: the server says ${answer.status}.`);
  const bytes = new Uint8Array(file.bytes);
  let length = 0;
  try {
    const reader = answer.body.getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      if (length + part.value.length <= bytes.length) bytes.set(part.value, length);
      length += part.value.length;
      progress(part.value.length);
    }
  } catch {
    // The connection broke; the length says so.
  }
  if (length !== file.bytes) {
    throw new Refused(
      `${file.file} did not come whole: ${megabytes(length)} (${length} bytes) of ${megabytes(file.bytes)} ` +
        `(${file.bytes} bytes). It is not used; reload the page.`,
    );
  }
  return bytes;
}

async function sha256(bytes) {
  if (!crypto.subtle) throw new Refused("This page checks what it loads, which browsers allow over https or on localhost only.");
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function forgetOlder(store, url) {
  for (const request of (await store?.keys()) ?? []) {
    if (request.url.startsWith(`${url}?`)) await store.delete(request);
  }
}
