figures.data.draws = {"seed":3};
