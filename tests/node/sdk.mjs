// Runs scenarios of the OpenAI SDK for Node against a gateway and prints what came of each, as JSON
// on a line of its own.
//
// usage: node sdk.mjs BASE_URL SCENARIO...
//
// It asserts nothing: tests/promises/test_sdk_node.py compares what is printed. The scenarios are
// the same as those of the Python SDK's tests, and use the SDK as its own README does.

import OpenAI from "openai";

const [baseURL, ...chosen] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-free-api", maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "你好 🦙" }];
const asked = { model: "gpt-3.5-turbo", max_tokens: 16, messages };

async function collect(stream) {
  let text = "";
  let usage = null;
  let chunks = 0;
  for await (const chunk of stream) {
    chunks += 1;
    text += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { text, usage, chunks };
}

async function failure(promise) {
  try {
    await promise;
    return { error: null };
  } catch (error) {
    const { status, code, type, param } = error;
    return { error: error.constructor.name, status, code, type, param };
  }
}

const scenarios = {
  async plain() {
    const completion = await client.chat.completions.create(asked);
    return { text: completion.choices[0].message.content, usage: completion.usage };
  },
  async stream() {
    return collect(await client.chat.completions.create({ ...asked, stream: true }));
  },
  async stream_with_usage() {
    const stream_options = { include_usage: true };
    return collect(
      await client.chat.completions.create({ ...asked, stream: true, stream_options }),
    );
  },
  async with_response() {
    const { data, response, request_id } = await client.chat.completions
      .create(asked)
      .withResponse();
    const text = data.choices[0].message.content;
    return { text, status: response.status, same: request_id === response.headers.get("x-request-id") };
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    const one = await client.models.retrieve(ids[0]);
    return { ids, one: one.id };
  },
  async errors() {
    return [
      await failure(client.chat.completions.create({ ...asked, model: "none" })),
      await failure(client.chat.completions.create({ ...asked, messages: [] })),
      await failure(client.files.list()),
    ];
  },
  async failed() {
    return failure(client.chat.completions.create(asked));
  },
  // With the SDK's default retries: a refusal that says not to come back.
  async limited() {
    try {
      await client.chat.completions.create(asked, { maxRetries: 2 });
      return { error: null };
    } catch (error) {
      const { code, headers } = error;
      return { error: error.constructor.name, code, headers: Object.fromEntries(headers) };
    }
  },
  // More at once than are let in, then one that comes back once, when it was told to.
  async patient() {
    const flood = Array.from({ length: 20 }, () =>
      failure(client.chat.completions.create(asked)),
    );
    const refused = (await Promise.all(flood)).map(({ error }) => error).filter(Boolean);
    const completion = await client.chat.completions.create(asked, { maxRetries: 1 });
    return [[...new Set(refused)], completion.choices[0].message.content];
  },
  async failed_stream() {
    return failure(
      client.chat.completions.create({ ...asked, stream: true }).then((stream) => collect(stream)),
    );
  },
  async timeout() {
    return failure(client.chat.completions.create(asked, { timeout: 300 }));
  },
  async leave() {
    const stream = await client.chat.completions.create({ ...asked, stream: true });
    for await (const chunk of stream) {
      return { first: chunk.choices[0].delta.content };
    }
  },
};

for (const name of chosen) console.log(JSON.stringify(await scenarios[name]()));
// The process stays until it is told to go: what upstream sees must be the end of a stream, not of
// the process.
await new Promise((resolve) => process.stdin.once("data", resolve));
process.exit(0);
