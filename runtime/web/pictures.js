// One stream for the pictures of all visible sources, because a browser opens at most six connections to one server.

// The server sends a picture of each source at least every two seconds, marked when it is old. After a longer silence
// the server or the network hangs.
const SILENT_MS = 4000;
const CHECK_MS = 500;

export class Pictures {
  // Calls show(source, bitmap, isLive) for every picture, and check() twice a second.
  constructor(show, check) {
    this.show = show;
    this.since = new Map();
    this.lastBytes = 0;
    setInterval(() => {
      this.reopenIfSilent();
      check();
    }, CHECK_MS);
    this.visible = new Set();
    this.isPaused = false;
    this.asked = "";
    this.abort = null;
    this.timer = 0;
    this.wait = 500;
    this.observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting) this.visible.add(entry.target.sourceName);
        else this.visible.delete(entry.target.sourceName);
      }
      this.later(100);
    }, { rootMargin: "100px" });
    document.addEventListener("visibilitychange", () => this.later(0));
  }

  watch(element, name) {
    element.sourceName = name;
    this.observer.observe(element);
  }

  forget(element) {
    this.observer.unobserve(element);
    this.visible.delete(element.sourceName);
    this.later(100);
  }

  pause(isPaused) {
    this.isPaused = isPaused;
    this.later(0);
  }

  later(milliseconds) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.restart(), milliseconds);
  }

  // Whether pictures of a requested source are overdue.
  isSilent(name) {
    const since = this.since.get(name);
    return since !== undefined && performance.now() - since > SILENT_MS;
  }

  // Reopens only when nothing at all arrives: one silent source is no reason to interrupt the others.
  reopenIfSilent() {
    if (!this.abort || performance.now() - this.lastBytes <= SILENT_MS) return;
    this.abort.abort();
    this.abort = null;
    this.restart();
  }

  restart() {
    const names = document.hidden || this.isPaused ? [] : [...this.visible].sort();
    const asked = names.map((name) => `source=${encodeURIComponent(name)}`).join("&");
    if (asked === this.asked && this.abort) return;
    this.asked = asked;
    this.lastBytes = performance.now();
    // A silent source stays silent until a picture arrives.
    this.since = new Map(names.map((name) => [name, this.since.get(name) ?? this.lastBytes]));
    this.abort?.abort();
    this.abort = null;
    if (!asked) return;
    const abort = this.abort = new AbortController();
    this.read(`/api/v1/stream.mjpeg?raw=1&${asked}`, abort.signal)
      .catch(() => {})
      .finally(() => {
        if (this.abort !== abort) return;
        this.abort = null;
        this.wait = Math.min(2 * this.wait, 5000);
        this.later(this.wait);
      });
  }

  async read(url, signal) {
    const answer = await fetch(url, { signal, credentials: "same-origin" });
    if (!answer.ok) throw new Error(answer.status);
    const reader = answer.body.getReader();
    let bytes = new Uint8Array(0);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      this.lastBytes = performance.now();
      bytes = joined(bytes, value);
      for (let part = nextPart(bytes); part; part = nextPart(bytes)) {
        bytes = bytes.subarray(part.end);
        this.wait = 500;
        await this.decode(part);
      }
    }
  }

  async decode(part) {
    const source = decodeURIComponent(part.headers["x-source"]);
    if (this.since.has(source)) this.since.set(source, performance.now());
    try {
      const bitmap = await createImageBitmap(new Blob([part.body], { type: "image/jpeg" }));
      this.show(source, bitmap, part.headers["x-live"] === "1");
      bitmap.close();
    } catch {
      // The next picture may decode.
    }
  }
}

function joined(first, second) {
  if (!first.length) return second;
  const all = new Uint8Array(first.length + second.length);
  all.set(first);
  all.set(second, first.length);
  return all;
}

// Reads the first part in bytes: headers, body and end; null while it is not complete.
function nextPart(bytes) {
  const head = endOfHead(bytes);
  if (head < 0) return null;
  const headers = {};
  for (const line of new TextDecoder("ascii").decode(bytes.subarray(0, head)).split("\r\n")) {
    const colon = line.indexOf(":");
    if (colon > 0) headers[line.slice(0, colon).toLowerCase()] = line.slice(colon + 1).trim();
  }
  const end = head + 4 + Number(headers["content-length"]);
  return bytes.length < end ? null : { headers, body: bytes.slice(head + 4, end), end };
}

function endOfHead(bytes) {
  const limit = Math.min(bytes.length, 4096) - 3;
  for (let i = 0; i < limit; i += 1) {
    if (bytes[i] === 13 && bytes[i + 1] === 10 && bytes[i + 2] === 13 && bytes[i + 3] === 10) return i;
  }
  return -1;
}
