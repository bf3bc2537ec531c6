// Light or dark, before anything is painted: a module would come too late and the page would flash.
(() => {
  const root = document.documentElement;
  let given;
  try {
    given = localStorage.getItem("diptych-theme");
  } catch {
    // storage may be switched off
  }
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  if (given === "dark" || given === "light") root.dataset.theme = given;

  addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => (button.textContent = dark() ? "Light" : "Dark");
    name();
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      try {
        localStorage.setItem("diptych-theme", root.dataset.theme);
      } catch {
        // then it lasts for this page only
      }
      name();
    });
  });
})();
