// Applies the stored colours before the first paint. A module would run too late.
try {
  const colours = { light: "light", dark: "dark" }[localStorage.getItem("ih-grpo.theme")];
  if (colours) document.documentElement.style.colorScheme = colours;
} catch {
  // without storage the system's colours apply
}
