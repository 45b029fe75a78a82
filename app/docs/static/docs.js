"use strict";

const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();

// A tab for each of the operation's x-codeSamples, above its responses.
function CodeSamples(system) {
  const { createElement: element, useState } = system.React;

  function Samples({ samples }) {
    const [shown, show] = useState(0);
    const tabs = samples.map((sample, number) =>
      element("button", { key: sample.label, type: "button", role: "tab", "aria-selected": number === shown,
                          onClick: () => show(number) }, sample.label));
    return element("section", { className: "code-samples", "aria-label": "Code samples" },
                   element("div", { role: "tablist" }, tabs),
                   element("pre", { role: "tabpanel", tabIndex: 0 }, samples[shown].source));
  }

  return {
    wrapComponents: {
      responses: (Responses) => (props) => {
        const path = ["paths", props.path, props.method, "x-codeSamples"];
        const samples = system.specSelectors.specJson().getIn(path);
        return element("div", null,
                       samples && element(Samples, { samples: samples.toJS() }),
                       element(Responses, props));
      },
    },
  };
}

// What Swagger UI leaves to be wished by those who hear the page, or go through it by the keyboard.
function Accessible(system) {
  const { createElement: element } = system.React;
  return {
    wrapComponents: {
      operations: (Operations) => (props) =>
        element("div", null, element("h2", { className: "only-heard" }, "Operations"), element(Operations, props)),
      DeepLink: () => ({ text }) => element("span", null, text), // a link within a button; the address changes all the same
    },
  };
}

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  deepLinking: true,
  validatorUrl: null,
  tryItOutEnabled: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
  syntaxHighlight: { activated: true },
  plugins: [CodeSamples, Accessible],
  onComplete: () => {
    document.getElementById("servers")?.setAttribute("aria-label", "Server");
    for (const [part, name] of [[".information-container", "About"], [".scheme-container", "Server and token"]]) {
      const found = document.querySelector(part);
      found?.setAttribute("role", "region");
      found?.setAttribute("aria-label", name);
    }
  },
});
