// The service's own API: addresses beside this page, the key of this tab, errors in its words.

const KEY = "narrowgate-key";

export class Refused extends Error {
  constructor(message, status, code) {
    super(message);
    this.status = status;
    this.code = code;
  }

  get isAboutKey() {
    return this.status === 401 || this.status === 403;
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY) || "",
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

function headers(more = {}) {
  const secret = key.get();
  return secret ? { ...more, authorization: `Bearer ${secret}` } : more;
}

async function refusal(response) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch { /* not one of ours */ }
  const words = said.message || `the service answered with status ${response.status}`;
  return new Refused(words, response.status, said.code);
}

export async function ask(path, { body, verb = body === undefined ? "GET" : "POST", signal, more } = {}) {
  const sent = headers({ ...more, ...(body === undefined ? {} : { "content-type": "application/json" }) });
  const content = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(path, { method: verb, headers: sent, body: content, signal, cache: "no-store" });
  if (!response.ok) throw await refusal(response);
  return response;
}

export const read = async (path, options) => (await ask(path, options)).json();

// Server-sent events of a reply; EventSource could not send the key.
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const frames = (rest + value).split("\n\n");
      rest = frames.pop();
      for (const frame of frames) {
        const event = { id: "", event: "message", data: "" };
        for (const line of frame.split("\n")) {
          const place = line.indexOf(":");
          if (place > 0) event[line.slice(0, place)] = line.slice(place + 1).trim();
        }
        if (event.data) yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
