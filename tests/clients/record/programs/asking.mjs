// What the Node clients' programs share; asking.py says more.

export const ADAPTER = 'orders-json';
export const BASE = 'shop-base';
export const KEY = 'none'; // the server asks for none; clients insist
export const QUESTION = 'two blue lamps to Oslo by Friday';
export const PREFILL = '{"items": [{"sku"';
export const SCHEMA = {
  type: 'object',
  properties: { city: { type: 'string', maxLength: 12 }, gift: { type: 'boolean' } },
  required: ['city', 'gift'],
  additionalProperties: false,
};
export const CONTINUE = { continue_final_message: true, add_generation_prompt: false };
// One red pixel.
export const IMAGE =
  'data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC';

// Runs every case against its own base URL (without `/v1`); a JSON line for each.
export async function run(cases) {
  for (const [name, ask] of Object.entries(cases)) {
    let got;
    try {
      got = await ask(`${process.env.PROXY}/${name}`);
    } catch (error) {
      got = { error: describe(error) };
    }
    console.log(JSON.stringify({ case: name, got }));
  }
}

// What a program that uses the client can tell of a refusal.
function describe(error) {
  const body = error.data?.error ?? error.error ?? {};
  return {
    class: error.constructor.name,
    status: error.status ?? error.statusCode ?? null,
    code: error.code ?? body.code ?? null,
    says: String(body.message ?? error.message).slice(0, 300),
  };
}
