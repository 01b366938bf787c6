// The browser's storage, or one that lasts as long as the page if the browser denies access.

function memoryStorage() {
  const values = new Map();
  return {
    getItem: (key) => values.get(key) ?? null,
    setItem: (key, value) => values.set(key, value),
    removeItem: (key) => values.delete(key),
    key: (at) => [...values.keys()][at] ?? null,
    get length() {
      return values.size;
    },
  };
}

function available(name) {
  try {
    return window[name];
  } catch {
    return memoryStorage();
  }
}

/** Kept until the user deletes it. */
export const lasting = available("localStorage");

/** Kept as long as the tab. */
export const ofTab = available("sessionStorage");
