// Shows the server's own OpenAPI document. Nothing is loaded from elsewhere: no validator, no external $ref.
SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
  syntaxHighlight: false,
  presets: [SwaggerUIBundle.presets.apis],
});
