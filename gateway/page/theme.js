// The theme that was chosen, before anything is painted; without a choice the system decides.
(() => {
  const root = document.documentElement;
  const stored = () => {
    try { return localStorage.getItem("narrowgate-theme") || ""; } catch { return ""; }
  };
  const apply = (theme) => {
    if (theme) root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  apply(stored());
  addEventListener("DOMContentLoaded", () => {
    const choice = document.getElementById("theme");
    choice.value = stored();
    choice.addEventListener("change", () => {
      apply(choice.value);
      try { localStorage.setItem("narrowgate-theme", choice.value); } catch { /* for this view only */ }
    });
  });
})();
