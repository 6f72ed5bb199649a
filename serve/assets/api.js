// The calls of the HTTP interface that the page uses.

/** A refused request, with the problems that the server named. */
export class Refused extends Error {
  constructor(problems) {
    super(problems.map((problem) => problem.text).join("\n\n"));
    this.problems = problems;
  }
}

/** Turns the body of a response that is an error into a `Refused`. */
async function refused(response) {
  try {
    return new Refused((await response.json()).problems);
  } catch {
    return new Refused([{ text: `the server answered with status ${response.status}` }]);
  }
}

export async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw await refused(response);
  return response.json();
}

/**
 * Requests samples and calls `on[event](data)` for each event of the stream. Aborting `signal` ends the request on the
 * server as well.
 */
export async function samples(request, signal, on) {
  const response = await fetch("/api/samples", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(request),
    signal,
  });
  if (!response.ok) throw await refused(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  let isComplete = false;
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const lines = event.split("\n");
      const field = (name) => lines.filter((line) => line.startsWith(`${name}: `)).map((line) => line.slice(name.length + 2)).join("\n");
      const name = field("event");
      if (!name) continue;
      const data = JSON.parse(field("data"));
      if (name === "error") throw new Refused(data.problems);
      isComplete ||= name === "done";
      on[name]?.(data);
    }
  }
  if (!isComplete) throw new Refused([{ text: "the server ended the connection before the samples were complete" }]);
}
