// Calls every endpoint of a gateway by the OpenAI SDK for Node and prints what came of each, as JSON
// on a line of its own.
//
// usage: node endpoints.mjs BASE_URL SCENARIO...
//
// It asserts nothing: tests/promises/test_sdk_endpoints_node.py compares what is printed.

import OpenAI, { toFile } from "openai";

const [baseURL, ...chosen] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "sk-free-api", maxRetries: 0, timeout: 30_000 });
const sound = () => toFile(Buffer.from("ID3 not much of a sound"), "canary.mp3");

async function collect(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

async function failure(promise) {
  try {
    await promise;
    return { error: null };
  } catch (error) {
    const { status, code, param } = error;
    return { error: error.constructor.name, status, code, param };
  }
}

const scenarios = {
  async completions() {
    const asked = { model: "talker", prompt: "Once", max_tokens: 5 };
    const plain = await client.completions.create(asked);
    const pieces = await collect(await client.completions.create({ ...asked, stream: true }));
    return [plain.choices[0].text, pieces.map((piece) => piece.choices[0].text).join("")];
  },
  async embeddings() {
    const asked = { model: "embedder", input: ["a", "b"], encoding_format: "float" };
    const made = await client.embeddings.create(asked);
    return [made.data[0].embedding, made.usage.prompt_tokens];
  },
  async moderations() {
    const judged = await client.moderations.create({ model: "judge", input: "Hi" });
    return judged.results[0].category_scores.violence;
  },
  async responses() {
    const plain = await client.responses.create({ model: "talker", input: "Hi", store: true });
    const stream = client.responses.stream({ model: "talker", input: "Hi" });
    const types = (await collect(stream)).map((event) => event.type);
    const whole = await stream.finalResponse();
    return [plain.output_text, whole.output_text, whole.usage.output_tokens, types.at(-1)];
  },
  async chat_stream() {
    const messages = [{ role: "user", content: "Hi" }];
    const stream = client.chat.completions.stream({ model: "talker", messages });
    const events = [];
    stream.on("content", (delta) => events.push(delta));
    return [await stream.finalContent(), events];
  },
  async images() {
    const asked = { model: "painter", prompt: "a cat" };
    const plain = await client.images.generate(asked);
    const events = await collect(await client.images.generate({ ...asked, stream: true }));
    return [plain.data[0].b64_json, events.map((event) => event.type)];
  },
  async speech() {
    const spoken = await client.audio.speech.create({
      model: "speaker",
      input: "Hi",
      voice: "alloy",
    });
    const bytes = Buffer.from(await spoken.arrayBuffer());
    return [bytes.length, bytes[257], spoken.headers.get("content-type")];
  },
  // The SDK writes the file first, and the model behind it.
  async transcriptions() {
    const asked = { file: await sound(), model: "listener", timestamp_granularities: ["word"] };
    const plain = await client.audio.transcriptions.create(asked);
    const events = await collect(
      await client.audio.transcriptions.create({ ...asked, file: await sound(), stream: true }),
    );
    return [plain.text, events.map((event) => event.type)];
  },
  async translations() {
    const file = await sound();
    return (await client.audio.translations.create({ file, model: "listener" })).text;
  },
  async errors() {
    const { responses, images, audio, files, embeddings } = client;
    return [
      await failure(responses.create({ model: "talker", input: "Hi", background: true })),
      await failure(images.generate({ model: "painter", prompt: "a cat", output_format: "gif" })),
      await failure(audio.speech.create({ model: "talker", input: "Hi", voice: "alloy" })),
      await failure(embeddings.create({ model: "none", input: "Hi" })),
      await failure(responses.retrieve("resp_1")),
      await failure(files.create({ file: await sound(), purpose: "user_data" })),
    ];
  },
};

for (const name of chosen) console.log(JSON.stringify(await scenarios[name]()));
