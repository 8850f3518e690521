figures.data.sample = {"centre":1.2,"spread":0.3,"seed":1};
