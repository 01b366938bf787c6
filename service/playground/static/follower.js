// Keeps the end of the conversation in view while an answer grows, unless the user has scrolled up.
import { byId } from "./dom.js";

const NEAR_PX = 60; // this close to the end of the page counts as being there

export class Follower {
  constructor() {
    this.following = true;
    this.page = document.scrollingElement;
    let top = 0;
    const scrolled = () => {
      const up = this.page.scrollTop < top;
      top = this.page.scrollTop;
      // The page also scrolls because the answer grows: only the user scrolls up.
      if (this.isAtEnd() || up) this.update(this.isAtEnd());
    };
    addEventListener("scroll", scrolled, { passive: true });
    new ResizeObserver(() => this.following && this.toEnd()).observe(byId("thread"));
    byId("to-end").addEventListener("click", () => this.toEnd());
  }

  isAtEnd() {
    return this.page.scrollHeight - this.page.scrollTop - this.page.clientHeight < NEAR_PX;
  }

  update(following) {
    this.following = following;
    byId("to-end").hidden = following || this.page.scrollHeight - this.page.clientHeight < NEAR_PX;
  }

  toEnd() {
    this.page.scrollTop = this.page.scrollHeight;
    this.update(true);
  }
}
