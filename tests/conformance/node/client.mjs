// What the official JavaScript client sees of a gateway: one JSON object on stdout.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "one two three" }];
const request = { model: "tiny", messages };

async function plain() {
  const reply = await client.chat.completions.create({ ...request, max_tokens: 2 });
  return { text: reply.choices[0].message.content, usage: reply.usage.total_tokens };
}

async function streamed() {
  const stream = await client.chat.completions.create({
    ...request,
    stream: true,
    stream_options: { include_usage: true },
  });
  const found = { roles: [], text: "", finish: null, usages: [] };
  for await (const chunk of stream) {
    found.usages.push(chunk.usage);
    const choice = chunk.choices[0];
    if (!choice) continue;
    if (choice.delta.role) found.roles.push(choice.delta.role);
    found.text += choice.delta.content ?? "";
    found.finish = choice.finish_reason ?? found.finish;
  }
  return found;
}

async function aborted() {
  const fake = { tokens: 100000, pace_s: 0.01 };
  const stream = await client.chat.completions.create({ ...request, stream: true, fake });
  let chunks = 0;
  for await (const chunk of stream) {
    if (++chunks === 3) stream.controller.abort();
  }
  return { chunks };
}

async function refused(change) {
  try {
    await client.chat.completions.create({ ...request, ...change });
  } catch (error) {
    const { status, code, param, type, requestID } = error;
    return { kind: error.constructor.name, status, code, param, type, hasId: Boolean(requestID) };
  }
  return null;
}

async function broken() {
  const fake = { fault: "truncate", after: 2 };
  const stream = await client.chat.completions.create({ ...request, stream: true, fake });
  try {
    for await (const chunk of stream);
  } catch (error) {
    return { kind: error.constructor.name, code: error.code };
  }
  return null;
}

async function listed() {
  const names = [];
  for await (const model of client.models.list()) names.push(model.id);
  return names;
}

console.log(
  JSON.stringify({
    plain: await plain(),
    streamed: await streamed(),
    aborted: await aborted(),
    unknownModel: await refused({ model: "nope" }),
    unknownField: await refused({ shout: true }),
    broken: await broken(),
    listed: await listed(),
  }),
);
